"""Where a run on a user's loader continues: the loader's position, kept for each rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torchmetrics import Metric

from framework.data.ready import WindowLoader
from framework.engine.metrics import restore_metric, state_of_metric
from framework.engine.objective import Objective


class Place:
    """Keeps the position of a user's loader, and the state of a module's own metrics, within an epoch.

    Lightning reads a batch of a stream ahead, before it restores its counters, so a position is given to the loader as
    soon as that is made.

    Args:
        objective: the objective of the run.

    Attributes:
        epoch: the epoch in which a resumed run continues.
        done: windows of that epoch that were trained on before.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.epoch = self.done = 0
        self._kept: dict[str, Any] = {}

    def keep(self, checkpoint: dict[str, Any], loader: Any, metrics: Mapping[str, Metric] | None = None) -> None:
        """Add the positions of all ranks to a checkpoint. A collective: every rank must call it.

        Args:
            checkpoint: the checkpoint.
            loader: the training loader; nothing is added for one of samples, whose order is keyed.
            metrics: metrics by name, which the framework does not reset itself.
        """
        if not isinstance(loader, WindowLoader) and metrics is None:
            return
        own = {
            "loader": loader.position() if isinstance(loader, WindowLoader) else None,
            "metrics": {name: state_of_metric(metric) for name, metric in (metrics or {}).items()},
        }
        positions: list[Any] = [own]
        world = self._objective.trainer.world_size
        if world > 1 and torch.distributed.is_initialized():
            positions = [None] * world
            torch.distributed.all_gather_object(positions, own)
        checkpoint["framework"]["positions"] = positions

    def find(self, checkpoint: Mapping[str, Any]) -> None:
        """Read this rank's position from a checkpoint."""
        positions, trainer = checkpoint["framework"].get("positions", ()), self._objective.trainer
        if trainer.state.fn != "fit" or len(positions) != trainer.world_size:
            return
        self._kept = dict(positions[trainer.global_rank])
        loops = checkpoint["loops"]["fit_loop"]
        epochs = loops["epoch_progress"]["current"]
        within = epochs["processed"] < epochs["ready"]
        self.epoch = epochs["processed"]
        self.done = loops["epoch_loop.batch_progress"]["current"]["processed"] if within else 0

    def put(self, loader: WindowLoader) -> None:
        """Let a new loader continue from the position."""
        loader.epoch, loader.start = self.epoch, self.done
        if (position := self._kept.pop("loader", None)) is not None:
            loader.resume(position)

    def put_metrics(self, metrics: Mapping[str, Metric]) -> None:
        """Restore the state of metrics within an epoch, at whose end they are reset."""
        kept = self._kept.get("metrics", {})
        for name, metric in metrics.items():
            if self.done and name in kept:
                restore_metric(metric, kept[name])
