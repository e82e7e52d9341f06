"""A training framework whose regularizers and optimizers are plugins that combine by declared rules."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.batch import MixedTarget, Outcome
    from framework.data import Data
    from framework.errors import UserError
    from framework.evaluate import predict, test, validate
    from framework.finding import Finding, LintWarning
    from framework.module import Core
    from framework.network_file import export
    from framework.phase import Phase
    from framework.plugin import Plugin
    from framework.recipe import Recipe
    from framework.run import Interrupted, Run, fit
    from framework.step import Step

__version__ = "0.1.0"

# albumentations asks the network for a newer release when it is imported, which a recipe may do before any plugin
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

_HOME = {
    "Core": "module",
    "Data": "data",
    "Finding": "finding",
    "LintWarning": "finding",
    "Interrupted": "run",
    "MixedTarget": "batch",
    "Outcome": "batch",
    "Phase": "phase",
    "Plugin": "plugin",
    "Recipe": "recipe",
    "Run": "run",
    "Step": "step",
    "UserError": "errors",
    "export": "network_file",
    "fit": "run",
    "predict": "evaluate",
    "test": "evaluate",
    "validate": "evaluate",
}
__all__ = [
    "Core",
    "Data",
    "Finding",
    "Interrupted",
    "LintWarning",
    "MixedTarget",
    "Outcome",
    "Phase",
    "Plugin",
    "Recipe",
    "Run",
    "Step",
    "UserError",
    "__version__",
    "export",
    "fit",
    "predict",
    "test",
    "validate",
]


def __getattr__(name: str) -> Any:
    # names are looked up on first use, so that `python -m framework --help` need not import torch
    if name in _HOME:
        return getattr(importlib.import_module(f"framework.{_HOME[name]}"), name)
    raise AttributeError(f"module 'framework' has no attribute {name!r}")
