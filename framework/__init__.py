"""A training framework whose regularizers and optimizers are plugins that combine by declared rules."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from framework.version import __version__

if TYPE_CHECKING:
    from framework.data.data import Data
    from framework.data.mixed import MixedTarget
    from framework.data.outcome import Outcome
    from framework.engine.core import Core
    from framework.errors import UserError
    from framework.plugin.finding import Finding, LintWarning
    from framework.plugin.host import Host
    from framework.plugin.phase import Phase
    from framework.plugin.plugin import Plugin
    from framework.plugin.step import Step
    from framework.ranges import Choices, LogRange, Range
    from framework.recipe.recipe import Recipe
    from framework.run.ensemble import ensemble
    from framework.run.evaluate import predict, test, validate
    from framework.run.export import export
    from framework.run.fit import fit
    from framework.run.result import Interrupted, Run
    from framework.run.soup import soup

# albumentations looks for a newer release online when imported, and a recipe may import it before any plugin
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

_HOME = {
    "Choices": "ranges",
    "LogRange": "ranges",
    "Range": "ranges",
    "Core": "engine.core",
    "Data": "data.data",
    "Finding": "plugin.finding",
    "LintWarning": "plugin.finding",
    "Host": "plugin.host",
    "Interrupted": "run.result",
    "MixedTarget": "data.mixed",
    "Outcome": "data.outcome",
    "Phase": "plugin.phase",
    "Plugin": "plugin.plugin",
    "Recipe": "recipe.recipe",
    "Run": "run.result",
    "Step": "plugin.step",
    "UserError": "errors",
    "export": "run.export",
    "fit": "run.fit",
    "predict": "run.evaluate",
    "ensemble": "run.ensemble",
    "soup": "run.soup",
    "test": "run.evaluate",
    "validate": "run.evaluate",
}
__all__ = [
    "Choices",
    "Core",
    "Data",
    "Finding",
    "Host",
    "Interrupted",
    "LintWarning",
    "LogRange",
    "MixedTarget",
    "Outcome",
    "Phase",
    "Plugin",
    "Range",
    "Recipe",
    "Run",
    "Step",
    "UserError",
    "__version__",
    "ensemble",
    "export",
    "fit",
    "predict",
    "soup",
    "test",
    "validate",
]


def __getattr__(name: str) -> Any:
    # imported on first use, so that `python -m framework --help` does not import torch
    if name in _HOME:
        return getattr(importlib.import_module(f"framework.{_HOME[name]}"), name)
    raise AttributeError(f"module 'framework' has no attribute {name!r}")
