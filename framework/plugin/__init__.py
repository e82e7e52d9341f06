"""The contract between plugins and the core: ``Plugin``, and the types of the arguments of its hook points."""

from framework.plugin.finding import Finding, LintWarning
from framework.plugin.host import Host
from framework.plugin.phase import Phase
from framework.plugin.plan import Plan
from framework.plugin.plugin import Plugin, overrides
from framework.plugin.step import Step

__all__ = ["Finding", "Host", "LintWarning", "Phase", "Plan", "Plugin", "Step", "overrides"]
