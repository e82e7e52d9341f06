"""Ends by ``max_steps`` and ``max_time``, which a run that goes on may move."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer


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
