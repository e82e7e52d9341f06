"""The metrics of a run's epochs, and which of them is the best."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple


class Entry(NamedTuple):
    """Metrics by tag of an epoch or of a validation within it, with the number of optimizer steps done before it."""

    epoch: int
    step: int
    metrics: dict[str, float]


def best_of(history: Sequence[Entry], monitor: str, mode: str) -> Entry | None:
    """Return the first entry with the best monitored metric; None if that was never finite.

    Args:
        history: the entries.
        monitor: tag of the metric.
        mode: ``"min"`` or ``"max"``: whether lower or higher values are better.

    Example:
        >>> best_of([Entry(0, 4, {"val/loss": 2.0}), Entry(1, 8, {"val/loss": 1.0})], "val/loss", "min").epoch
        1
    """
    known = [entry for entry in history if math.isfinite(entry.metrics.get(monitor, math.nan))]
    choose = min if mode == "min" else max
    return choose(known, key=lambda entry: entry.metrics[monitor]) if known else None


def warn_of_first(history: Sequence[Entry], monitor: str) -> None:
    """Warn, after the first validation, of a monitored metric that is not finite: no epoch is the best by it."""
    value = history[0].metrics.get(monitor, 0.0) if len(history) == 1 else 0.0
    if not math.isfinite(value):
        warnings.warn(
            f"{monitor} is {value} at the first validation; as long as it is not finite, there is no best epoch",
            stacklevel=2,
        )
