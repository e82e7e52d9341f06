"""Lightning's ``Trainer`` as a run wants it: callbacks, logger, checkpoints."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import ModelParallelStrategy

from framework.dashboard import Dashboard
from framework.errors import UserError
from framework.folder import RunFolder
from framework.notices import as_callbacks
from framework.phase import Phase
from framework.progress import make_progress
from framework.quiet import quiet
from framework.recipe import Recipe, lightning_options

# options that say on what to evaluate; the rest of the Trainer's options is about training
_MACHINE = ("accelerator", "devices", "num_nodes", "strategy", "precision")


def training_trainer(
    recipe: Recipe, options: Mapping[str, Any], folder: RunFolder | None, phase: Phase | None
) -> pl.Trainer:
    """Return the Trainer of a run, or of a later phase of it, that writes into the run's folder.

    Raises:
        UserError: where this machine lacks what the options ask for, or Lightning refuses them.
    """
    chosen: dict[str, Any] = {"enable_model_summary": False, **lightning_options(options)}
    callbacks = [*as_callbacks(recipe.plugins), *(chosen.pop("callbacks", None) or [])]
    if chosen.get("logger", True) is True:
        chosen["logger"] = False
        if folder is not None:
            # a phase counts its steps from 0, so its curves stand apart
            path = folder.path if phase is None else folder.path / phase.name
            chosen["logger"] = TensorBoardLogger(path.parent.parent, name=path.parent.name, version=path.name)
    if chosen["logger"]:  # a user's own TensorBoardLogger is served too
        callbacks.append(Dashboard(recipe.parameters, monitor=recipe.monitor, mode=recipe.mode))
    if chosen.get("enable_progress_bar", True) and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(make_progress())
    if folder is None:
        chosen["enable_checkpointing"] = False
    keep = folder if chosen.get("enable_checkpointing", True) else None
    if phase is not None:
        callbacks += phase.callbacks(keep)
    elif keep is not None:
        callbacks += _checkpoints(recipe, keep)
    trainer = _make(chosen, callbacks)
    if isinstance(trainer.strategy, ModelParallelStrategy):
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint):
                # an error may be one rank's alone, and to gather the network takes all
                callback.save_on_exception = False
    return trainer


def _make(options: Mapping[str, Any], callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    try:
        with quiet():
            trainer = pl.Trainer(**options, callbacks=list(callbacks))
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"trainer options: {one_line(error)}") from error
    precision = options.get("precision")
    if precision in ("16-mixed", "16", 16) and trainer.precision_plugin.precision != "16-mixed":
        raise UserError(
            f"trainer.precision={precision!r}: this machine has no device for it (on a CPU Lightning would take"
            " bf16-mixed without telling); use --trainer.precision bf16-mixed or 32-true"
        )
    return trainer


def _checkpoints(recipe: Recipe, folder: RunFolder) -> list[pl.Callback]:
    # one without a monitor: with save_last and a monitor Lightning calls the best epoch's file last
    last = ModelCheckpoint(
        folder.checkpoints,
        filename="last",
        save_on_train_epoch_end=True,
        save_on_exception=True,
        enable_version_counter=False,
    )
    if recipe.data.val is None and recipe.monitor.startswith("val/"):
        return [last]
    best = ModelCheckpoint(
        folder.checkpoints,
        filename="best",
        monitor=recipe.monitor,
        mode=recipe.mode,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    return [best, last]


def evaluating_trainer(recipe: Recipe, options: Mapping[str, Any]) -> pl.Trainer:
    """Return a Trainer that evaluates and writes nothing.

    Raises:
        UserError: where this machine lacks what the options ask for.
    """
    chosen = {k: v for k, v in lightning_options(options).items() if k in _MACHINE or k.startswith("limit_")}
    chosen |= {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return _make({**chosen, "enable_progress_bar": False}, as_callbacks(recipe.plugins))


@contextmanager
def refusals() -> Iterator[None]:
    """Tell in one line what Lightning itself refuses; errors of the user's own code stay what they are.

    Raises:
        UserError: in place of Lightning's error.
    """
    try:
        yield
    except IsADirectoryError as error:
        raise UserError(
            f"{error.filename}: a checkpoint in parts, which only the strategy that wrote it can read; evaluate with"
            " --trainer.strategy and devices of the run, or train with strategy='fsdp2', which writes it whole"
        ) from error
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


def one_line(error: BaseException) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())
