"""TensorBoard's event files, cut back to a checkpoint when a run is resumed from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

from framework.checkpoint.curves import Curves


def sizes_of(folder: Path, loggers: Iterable[Any]) -> dict[str, int]:
    """Flush the loggers and return the lengths of a folder's event files by name.

    Subfolders are left out: a later phase has its own curves and checkpoints.

    Args:
        folder: the folder of the run, or of the phase.
        loggers: the Trainer's loggers.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            with suppress(OSError):  # of a full disk the logger itself tells
                logger.flush() if isinstance(logger, Curves) else logger.experiment.flush()
    return {path.name: path.stat().st_size for path in _event_files(folder)}


def take_back(folder: Path, sizes: Mapping[str, int]) -> None:
    """Truncate event files to their lengths at a checkpoint, because the resumed run logs all later values again.

    A run only appends records to an event file, so that truncation restores the file of that moment.

    Args:
        folder: the folder of the run, or of the phase.
        sizes: lengths by name, as :func:`sizes_of` returned them when the checkpoint was written; other files are
            removed.
    """
    for path in _event_files(folder):
        size = sizes.get(path.name, 0)
        if size == 0:
            path.unlink()
        elif path.stat().st_size > size:
            os.truncate(path, size)


def _event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents*"))
