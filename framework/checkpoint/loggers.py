"""Loggers of the user's own, taken back to a checkpoint when a run is resumed from it."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only


@rank_zero_only
def take_loggers_back(loggers: Iterable[Any], step: int) -> None:
    """Let loggers go on after a step, because the resumed run logs all later values again.

    Rows of a ``CSVLogger`` up to the step stay, which Lightning would delete; TensorBoard is told to forget later
    values. Of other loggers, the user is told.

    Args:
        loggers: the user's loggers, not used so far.
        step: optimizer steps done at the checkpoint.
    """
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            _keep_rows(logger, step)
        elif isinstance(logger, TensorBoardLogger):
            logger._kwargs.setdefault("purge_step", step + 1)
        else:
            warnings.warn(
                f"{type(logger).__name__} cannot be taken back to step {step}, from which this run is resumed: what was"
                " logged after it is logged again",
                stacklevel=2,
            )


def _keep_rows(logger: CSVLogger, step: int) -> None:
    path = Path(logger.log_dir) / "metrics.csv"
    if not path.exists():
        return
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or [])
        rows = [row for row in reader if not row.get("step") or int(float(row["step"])) <= step]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning tells that it deletes the file
        experiment = logger.experiment
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    experiment.metrics_keys = names
