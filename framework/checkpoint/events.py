"""TensorBoard's event files of a run, or of a later phase, taken back to where a checkpoint was written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger


def sizes_of(folder: Path, loggers: Iterable[Any]) -> dict[str, int]:
    """Return the lengths of the event files in a folder by name, with all that was logged written out.

    Folders within are left out: a later phase has curves, and checkpoints, of its own.

    Args:
        folder: the folder of the run, or of the phase.
        loggers: the Trainer's loggers.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
    return {path.name: path.stat().st_size for path in _event_files(folder)}


def take_back(folder: Path, sizes: Mapping[str, int]) -> None:
    """Cut off what was logged after a checkpoint: the run goes on from there and logs it once more.

    An event file is a row of records, to which a run only adds; cut to its length at the checkpoint it is what it was.

    Args:
        folder: the folder of the run, or of the phase.
        sizes: what :func:`sizes_of` returned when the checkpoint was written.
    """
    for path in _event_files(folder):
        size = sizes.get(path.name, 0)
        if size == 0:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents*"))
