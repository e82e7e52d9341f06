"""Saving and restoring the state of a torchmetrics metric in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchmetrics import Metric


def state_of_metric(metric: Metric) -> dict[str, Any]:
    """Return the state of a metric, with its count of updates, which torchmetrics does not save."""
    metric.persistent(True)
    return {"state": dict(metric.state_dict()), "updates": [one._update_count for one in _parts(metric)]}


def restore_metric(metric: Metric, kept: Mapping[str, Any]) -> None:
    """Load what :func:`state_of_metric` returned into a metric of the same kind."""
    metric.persistent(True)
    metric.load_state_dict(kept["state"])
    for one, updates in zip(_parts(metric), kept["updates"], strict=True):
        one._update_count = updates
        one._computed = None


def _parts(metric: Metric) -> list[Metric]:
    return [one for one in metric.modules() if isinstance(one, Metric)]
