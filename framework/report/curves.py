"""TensorBoard's logger, which writes the values of one call as one record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]


class Curves(TensorBoardLogger):
    """Writes the same curves as Lightning's logger, with one record for all values of a call instead of one for each.

    A record of its own costs each value some 60 microseconds: as much as a quarter of a small network's step.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write values by tag.

        Args:
            metrics: numbers by tag.
            step: the step of all of them.
        """
        if self._prefix or not all(isinstance(value, float | int) for value in metrics.values()):
            super().log_metrics(metrics, step)
            return
        self.experiment._get_file_writer().add_summary(scalars(metrics), step)


def scalars(values: Mapping[str, float]) -> Any:
    """Return one record of TensorBoard's for all values."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
