"""Many runs of one recipe: a search for settings, and comparisons."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.tune.ablation import ablate
    from framework.tune.comparison import compare
    from framework.tune.results import Study
    from framework.tune.search import tune
    from framework.tune.table import Report

_HOME = {
    "Report": "table",
    "Study": "results",
    "ablate": "ablation",
    "compare": "comparison",
    "tune": "search",
}

__all__ = ["Report", "Study", "ablate", "compare", "tune"]


def __getattr__(name: str) -> Any:
    # imported on first use: a worker needs less
    if name in _HOME:
        return getattr(importlib.import_module(f"framework.tune.{_HOME[name]}"), name)
    raise AttributeError(f"module 'framework.tune' has no attribute {name!r}")
