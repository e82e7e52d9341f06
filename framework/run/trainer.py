"""Lightning's ``Trainer`` for training and for evaluation: its callbacks, logger and checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector

from framework.checkpoint.curves import Curves
from framework.checkpoint.file import CheckpointFiles, not_data
from framework.checkpoint.folder import RunFolder
from framework.checkpoint.loggers import take_loggers_back
from framework.checkpoint.resume import Start
from framework.checkpoint.saving import Checkpoints
from framework.checkpoint.signals import Signals, StopOnSignal
from framework.engine.loop import EpochLoop
from framework.engine.notices import as_callbacks
from framework.errors import UserError, one_line
from framework.plugin.phase import Phase
from framework.recipe.recipe import Recipe, lightning_options
from framework.report.dashboard import Dashboard
from framework.report.progress import make_progress
from framework.report.telling import guard
from framework.run.launcher import HandsBack
from framework.run.quiet import quiet

# options that also apply to evaluation; the other options of the Trainer are about training
_MACHINE = ("accelerator", "devices", "num_nodes", "strategy", "precision")


@dataclasses.dataclass(frozen=True)
class SaveOptions:
    """Where and when a run saves its checkpoints.

    Args:
        folder: the run's folder, None to save nothing.
        signals: the signals that request a stop.
        every_n_steps: optimizer steps between two checkpoints, None for no such rule.
        every_n_minutes: minutes between two checkpoints, None for no such rule.
        seconds: least seconds between two checkpoints at the ends of epochs.
        after: optimizer steps of the run before a later phase, 0 for the run itself.
        accept: called by rank zero once all checks are passed, right before the first step; None for nothing.
    """

    folder: RunFolder | None
    signals: Signals
    every_n_steps: int | None
    every_n_minutes: float | None
    seconds: float = 0.0
    after: int = 0
    accept: Callable[[], None] | None = None


def training_trainer(
    recipe: Recipe, options: Mapping[str, Any], save: SaveOptions, phase: Phase | None, start: Start | None
) -> pl.Trainer:
    """Return the Trainer of a run or of one of its later phases, which writes into the run's folder.

    Args:
        recipe: the recipe to train.
        options: the Trainer's options.
        save: where and when to save checkpoints.
        phase: the later phase, None for the run itself.
        start: the checkpoint to resume from, None to start from the beginning.

    Raises:
        UserError: if this machine does not support an option, or Lightning refuses one.
    """
    chosen: dict[str, Any] = {"enable_model_summary": False, **lightning_options(options)}
    callbacks = [*as_callbacks(recipe.plugins), *(chosen.pop("callbacks", None) or [])]
    folder = save.folder
    _give_folders(callbacks, folder)
    if chosen.get("logger", True) is True:
        chosen["logger"] = False
        if folder is not None:
            path = folder.curves(None if phase is None else phase.name)
            # a TensorBoard that is open has already read steps that are repeated now
            purge = None if start is None else start.step + 1
            chosen["logger"] = Curves(path.parent.parent, path.parent.name, path.name, purge_step=purge)
    elif start is not None and chosen["logger"]:
        take_loggers_back(_listed(chosen["logger"]), start.step)
    if chosen["logger"]:  # a TensorBoardLogger of the user's own gets the dashboard too
        callbacks.append(Dashboard(recipe.parameters))
    if chosen.get("enable_progress_bar", True) and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(make_progress())
    if phase is not None and phase.stop_when is not None:
        callbacks.append(_StopWhen(phase.stop_when))
    if folder is None or chosen.get("fast_dev_run"):
        chosen["enable_checkpointing"] = False
    if folder is None or not chosen.get("enable_checkpointing", True):
        callbacks.append(StopOnSignal(save.signals))
    else:
        files = CheckpointFiles()
        chosen["plugins"] = [*_listed(chosen.get("plugins")), files]
        checkpoints = Checkpoints(
            folder,
            folder.curves(None if phase is None else phase.name),
            files,
            save.signals,
            name="last" if phase is None else phase.name,
            after=save.after,
            monitor=recipe.monitor if phase is None and _is_validated(recipe) else None,
            mode=recipe.mode,
            every_n_steps=save.every_n_steps,
            every_n_minutes=save.every_n_minutes,
            seconds=save.seconds,
        )
        callbacks.append(checkpoints)
    if folder is not None:
        chosen.setdefault("default_root_dir", str(folder.path))
    trainer = _make(chosen, callbacks)
    trainer._checkpoint_connector.__class__ = _OneDoor
    guard(trainer.loggers)
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        trainer.strategy.launcher.__class__ = HandsBack
    trainer.fit_loop.epoch_loop = EpochLoop(trainer.fit_loop.epoch_loop)
    # with max_steps Lightning would end the epoch of a checkpoint written at its end again, and skip the next epoch
    trainer.fit_loop._iteration_based_training = _never  # type: ignore[method-assign]
    if save.accept is not None:
        loop = trainer.fit_loop
        loop.on_run_start = functools.partial(_accept_at, loop, save.accept)  # type: ignore[method-assign]
    return trainer


def _give_folders(callbacks: Sequence[pl.Callback], folder: RunFolder | None) -> None:
    """Give checkpoint callbacks of the user's that name no folder one of their own, beside the run's checkpoints.

    Lightning would let them write into the folder of the run's own checkpoints, such as ``last.ckpt`` in its place.
    """
    for one in callbacks:
        if isinstance(one, ModelCheckpoint) and folder is not None and (one.dirpath is None or hasattr(one, "_given")):
            one.dirpath, one._given = str(folder.path / "model_checkpoint"), True  # type: ignore[attr-defined]


class _OneDoor(_CheckpointConnector):
    """Begins a run where :func:`framework.fit` says and nowhere else.

    Under SLURM, Lightning would begin every run from a file ``hpc_ckpt_N.ckpt`` that any earlier run left behind.
    """

    _hpc_resume_path = None
    _others: dict[str, Any] | None = None

    def _get_loops_state_dict(self) -> dict[str, Any]:
        """Return the progress of all loops; while one trains, only that of its own changes."""
        trainer = self.trainer
        if self._others is None:
            others = ("validate_loop", "test_loop", "predict_loop")
            self._others = {name: getattr(trainer, name).state_dict() for name in others}
        return {"fit_loop": trainer.fit_loop.state_dict(), **self._others}


def _accept_at(loop: Any, accept: Callable[[], None]) -> None:
    """Start the loop, which lets every callback and the core refuse, then accept."""
    type(loop).on_run_start(loop)
    if loop.trainer.is_global_zero:
        accept()


def _never() -> bool:
    return False


def _listed(plugins: Any) -> list[Any]:
    return list(plugins) if isinstance(plugins, (list, tuple)) else [] if plugins is None else [plugins]


def _is_validated(recipe: Recipe) -> bool:
    return recipe.data.validates or not recipe.monitor.startswith("val/")


def _make(options: Mapping[str, Any], callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    try:
        with quiet():
            trainer = pl.Trainer(**options, callbacks=list(callbacks))
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"trainer options: {one_line(error)}") from error
    precision = options.get("precision")
    if precision in ("16-mixed", "16", 16) and trainer.precision_plugin.precision != "16-mixed":
        raise UserError(
            f"trainer.precision={precision!r}: no device of this machine supports it (on a CPU Lightning would use"
            " bf16-mixed without a warning); use --trainer.precision bf16-mixed or 32-true"
        )
    return trainer


def evaluating_trainer(recipe: Recipe, options: Mapping[str, Any], callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """Return a Trainer that evaluates and writes no files.

    Args:
        recipe: the recipe, whose callbacks are called.
        options: the Trainer's options, of which those about training are ignored.
        callbacks: further callbacks, called after the recipe's.

    Raises:
        UserError: if this machine does not support an option.
    """
    chosen = {k: v for k, v in lightning_options(options).items() if k in _MACHINE or k.startswith("limit_")}
    chosen |= {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    chosen["plugins"] = [CheckpointFiles()]
    return _make({**chosen, "enable_progress_bar": False}, [*as_callbacks(recipe.plugins), *callbacks])


class _StopWhen(pl.Callback):
    """Ends a phase when its condition on the validation metrics holds."""

    def __init__(self, condition: Callable[[Mapping[str, float]], bool]) -> None:
        self._condition = condition

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self._condition({name: float(value) for name, value in trainer.callback_metrics.items()}):
            trainer.should_stop = True


@contextmanager
def refusals() -> Iterator[None]:
    """Turn errors that Lightning itself raises into a ``UserError`` of one line; errors of user code stay as they are.

    Raises:
        UserError: in place of Lightning's error.
    """
    try:
        yield
    except IsADirectoryError as error:
        raise UserError(
            f"{error.filename}: a sharded checkpoint, which only the strategy that wrote it can read; evaluate with the"
            " run's --trainer.strategy and devices, or train with strategy='fsdp2', which writes whole checkpoints"
        ) from error
    except UnpicklingError as error:  # from strategies that read checkpoints themselves
        raise not_data("the checkpoint", error) from error
    except RuntimeError as error:
        if str(error).startswith("Error(s) in loading state_dict"):
            raise UserError(f"the checkpoint does not fit this network: {one_line(error)}") from error
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        home = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if isinstance(error, MisconfigurationException) or home in ("pytorch_lightning", "lightning_fabric"):
            raise UserError(one_line(error)) from error
        raise
