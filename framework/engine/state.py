"""State that a checkpoint carries: ends that a resumed run may move, and the format of the core's own entries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer

from framework.errors import UserError


def out_of_time(trainer: pl.Trainer) -> bool:
    """Tell whether ``max_time`` is over."""
    timers = [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
    left = [timer.time_remaining() for timer in timers]
    return any(seconds is not None and seconds <= 0.0 for seconds in left)


def go_on_within_epoch(trainer: pl.Trainer, loops: dict[str, Any], steps: int) -> None:
    """Have an epoch that was cut short go on where there is more to come by now; for Lightning it is done.

    Args:
        trainer: the Trainer as it is now.
        loops: the state of Lightning's ``fit_loop``, which is changed.
        steps: optimizer steps done.
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    ended = epochs["current"]["processed"] == epochs["current"]["ready"]
    over = trainer.should_stop or 0 <= trainer.max_steps <= steps
    if ended and not batches["is_last_batch"] and not over:
        for count in (epochs["current"], epochs["total"]):
            count["processed"] -= 1
            count["completed"] = count["processed"]


# ---- the core's part of a checkpoint ---------------------------------------------------------------------------------

FORMAT = 1
# what the core writes under "framework" besides the format number, and reads
OWN_ENTRIES = ("history", "within_epoch", "stopped", "skipped")


class BadCheckpoint(UserError):
    """A file is not a usable checkpoint; the message says why."""


def check_format(content: Mapping[str, Any], path: str | Path) -> None:
    """Check that a file is a checkpoint of this framework, in the format that this version reads.

    Args:
        content: what the file holds.
        path: the file, for the error.

    Raises:
        BadCheckpoint: if it is not.
    """
    kept = content.get("framework")
    if not isinstance(kept, dict):
        raise BadCheckpoint(f"{path}: not a checkpoint of this framework (it has no format number)")
    if kept.get("format") != FORMAT:
        raise BadCheckpoint(
            f"{path}: has format {kept.get('format')!r}, but this version reads format {FORMAT}; use the version that"
            " wrote it (run.json names it)"
        )
