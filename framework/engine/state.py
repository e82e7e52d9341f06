"""A run's own state in checkpoints, and where a resumed run continues."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer

from framework.engine.objective import Objective
from framework.engine.recorder import Entry, Recorder
from framework.errors import UserError


def state_of_run(objective: Objective, recorder: Recorder, samples_per_step: int | None) -> dict[str, Any]:
    """Return what a checkpoint keeps of a run besides Lightning's entries; a collective: every rank must call.

    Its size does not depend on the length of the run.

    Args:
        objective: whose run it is.
        recorder: its metrics so far.
        samples_per_step: samples of an optimizer step over all ranks, None where no training loader was made.
    """
    trainer = objective.trainer
    within: list[Any] = [recorder.state()]
    if trainer.world_size > 1 and torch.distributed.is_initialized():
        within = [None] * trainer.world_size
        torch.distributed.all_gather_object(within, recorder.state())
    return {
        "format": FORMAT,
        "history": [tuple(entry) for entry in recorder.kept],
        "within_epoch": within,
        "stopped": _stoppers(objective) if trainer.should_stop and not out_of_time(trainer) else None,
        "samples_per_step": samples_per_step,
        "skipped": objective.at.skipped,
    }


def restore_run(objective: Objective, recorder: Recorder, checkpoint: dict[str, Any]) -> tuple[list[Any], int | None]:
    """Restore the metrics up to a checkpoint, and whether a plugin had ended the run.

    Returns:
        What each rank had gathered within the epoch, and the samples of a step; nothing and None outside of ``fit``.

    Raises:
        BadCheckpoint: where the checkpoint is none of a run, or of another format.
    """
    check_format(checkpoint, "the checkpoint")
    kept, trainer = checkpoint["framework"], objective.trainer
    recorder.history = [Entry(*entry) for entry in kept["history"]]
    if trainer.state.fn != "fit":
        return [], None
    step = objective.at
    step.skipped = kept["skipped"]
    step.index, step.epoch = checkpoint["global_step"], checkpoint["epoch"]
    trainer.should_stop = kept["stopped"] == _stoppers(objective)  # with more patience the run may go on
    go_on_within_epoch(trainer, checkpoint["loops"]["fit_loop"], step.index)
    return kept["within_epoch"], kept["samples_per_step"]


def _stoppers(objective: Objective) -> dict[str, Any]:
    return {plugin.name: plugin.declared_ for plugin in objective.answers.of("should_stop")}


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
