"""TensorBoard's logger, which writes all values of a step as one record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]


class Curves(TensorBoardLogger):
    """Writes the same curves as Lightning's logger, with one record for all values of a step instead of one for each.

    A record of its own costs each value some 60 microseconds: as much as a quarter of a small network's step. Values
    wait for those of another step, for :meth:`flush`, or for the end.
    """

    _waiting: dict[str, float] | None = None
    _of: tuple[int | None, float] = None, 0.0  # step and time of the values that wait

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Take values by tag.

        Args:
            metrics: numbers by tag.
            step: the step of all of them.
        """
        if self._prefix or not all(isinstance(value, float | int) for value in metrics.values()):
            self._write()
            super().log_metrics(metrics, step)
            return
        if self._waiting is None or step != self._of[0] or not self._waiting.keys().isdisjoint(metrics):
            self._write()
            self._waiting, self._of = {}, (step, time.time())
        self._waiting.update(metrics)

    @rank_zero_only
    def flush(self) -> None:
        """Write the values that wait, and all that the writer holds back, to the file."""
        self._write()
        self.experiment.flush()

    @rank_zero_only
    def save(self) -> None:
        """Write the values that wait, and what Lightning's logger saves."""
        self._write()
        super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the values that wait, and close the file."""
        self._write()
        super().finalize(status)

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting:
            self.experiment._get_file_writer().add_summary(scalars(waiting), *self._of)


def scalars(values: Mapping[str, float]) -> Any:
    """Return one record of TensorBoard's for all values."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
