"""A run's own state in checkpoints, and where a resumed run continues."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer

from framework.engine.history import Entry
from framework.engine.logged import state_of_logged
from framework.engine.objective import Objective
from framework.engine.recorder import Recorder
from framework.errors import UserError


def state_of_run(objective: Objective, recorder: Recorder, samples_per_step: int | None) -> dict[str, Any]:
    """Return the framework's own entries of a checkpoint. A collective: every rank must call it.

    Its size does not depend on the length of the run.

    Args:
        objective: the objective of the run.
        recorder: the metrics so far.
        samples_per_step: samples per optimizer step over all ranks, None if no training loader was made.
    """
    trainer = objective.trainer
    own = {**recorder.state(), "logged": state_of_logged(trainer.fit_loop.epoch_loop._results)}
    within: list[Any] = [own]
    if trainer.world_size > 1 and torch.distributed.is_initialized():
        within = [None] * trainer.world_size
        torch.distributed.all_gather_object(within, own)
    return {
        "format": FORMAT,
        "history": [tuple(entry) for entry in recorder.kept],
        "within_epoch": within,
        "stopped": _stoppers(objective) if trainer.should_stop and not out_of_time(trainer) else None,
        "samples_per_step": samples_per_step,
        "skipped": objective.at.skipped,
    }


def restore_run(objective: Objective, recorder: Recorder, checkpoint: dict[str, Any]) -> tuple[list[Any], int | None]:
    """Restore step counters, metrics, and whether a plugin had stopped the run, from a checkpoint.

    Args:
        objective: the objective of the resumed run.
        recorder: receives the history of metrics.
        checkpoint: the content of the checkpoint; Lightning's progress in it may be changed.

    Returns:
        The recorder's state of each rank within the epoch, and the samples per optimizer step; an empty list and None
        outside of ``fit``.

    Raises:
        BadCheckpoint: if the checkpoint is not of this framework, or has another format.
    """
    check_format(checkpoint, "the checkpoint")
    kept, trainer = checkpoint["framework"], objective.trainer
    recorder.history = [Entry(*entry) for entry in kept["history"]]
    if trainer.state.fn != "fit":
        return [], None
    step = objective.at
    step.skipped = kept["skipped"]
    step.index, step.epoch = checkpoint["global_step"], checkpoint["epoch"]
    # with other settings of the plugins that stopped it, such as more patience, the run continues
    trainer.should_stop = kept["stopped"] == _stoppers(objective)
    go_on_within_epoch(trainer, checkpoint["loops"]["fit_loop"], step.index)
    return kept["within_epoch"], kept["samples_per_step"]


def _stoppers(objective: Objective) -> dict[str, Any]:
    return {plugin.name: plugin.declared_ for plugin in objective.answers.of("should_stop")}


def out_of_time(trainer: pl.Trainer) -> bool:
    """Return whether the Trainer's ``max_time`` has elapsed."""
    timers = [one for one in trainer.callbacks if isinstance(one, Timer)]  # type: ignore[attr-defined]
    left = [timer.time_remaining() for timer in timers]
    return any(seconds is not None and seconds <= 0.0 for seconds in left)


def go_on_within_epoch(trainer: pl.Trainer, loops: dict[str, Any], steps: int) -> None:
    """Let a run continue an epoch that was stopped before its end, which Lightning would count as completed.

    Args:
        trainer: the Trainer of the resumed run, whose limits may differ.
        loops: the state of Lightning's ``fit_loop``, changed in place.
        steps: optimizer steps done.
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    ended = epochs["current"]["processed"] == epochs["current"]["ready"]
    over = trainer.should_stop or 0 <= trainer.max_steps <= steps
    if ended and not batches["is_last_batch"] and not over:
        for count in (epochs["current"], epochs["total"]):
            count["processed"] -= 1
            count["completed"] = count["processed"]


# ---- the format of a checkpoint --------------------------------------------------------------------------------------

FORMAT = 1
# entries under "framework" that the core writes and reads, besides the format number
OWN_ENTRIES = ("history", "within_epoch", "stopped", "skipped")


class BadCheckpoint(UserError):
    """Raised for a file that is not a usable checkpoint; the message says why."""


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
