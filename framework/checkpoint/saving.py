"""The callback that writes checkpoints: when to write one, and which ones to keep."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.strategies import Strategy

from framework.checkpoint.atomic import link
from framework.checkpoint.events import sizes_of
from framework.checkpoint.file import CheckpointFiles
from framework.checkpoint.folder import KEY, NEXT, RunFolder, previous
from framework.checkpoint.held import copy_of, is_small
from framework.checkpoint.signals import Signals, Stopped
from framework.errors import NonFiniteError, UserError, did_you_mean
from framework.ops.finite import finite_weights

if TYPE_CHECKING:
    from framework.engine.core import Core


class Checkpoints(Checkpoint):
    """Lightning callback that keeps the last checkpoint of a run, the one before it, and the one of the best epoch.

    ``last`` is written at the end of an epoch unless one was written some seconds ago, after a given number of steps or
    minutes, at the end of training, and on a signal, after which training ends; the file that it replaces is kept as
    ``previous``. If the epoch is the best so far, ``best`` becomes a second name of the same file. The checkpoint of a
    best epoch for which ``last`` is not written is kept in memory, and becomes ``best`` before ``last`` is next written
    or training fails; that of a large network is written at once.

    Lightning's ``ModelCheckpoint`` is not used: with a monitor its last file is the best one, it does not keep the file
    before the last, it counts a best epoch as saved even if the file could not be written, and each rank looks at its
    own clock.

    A file within an epoch is written after the validation at its step, if there is one, so that everything that is
    logged at the step precedes it, and nothing is logged twice when a run is resumed from it.

    Args:
        folder: the run's folder.
        curves: folder of the event files.
        files: writes the files.
        signals: the signals that request a stop.
        name: name of the last file; other than ``"last"`` for a later phase, which has no best.
        after: optimizer steps of the run before the phase, 0 for the run itself.
        monitor: the metric by which an epoch is best, None for no best.
        mode: ``"min"`` or ``"max"``: which way the metric is better.
        every_n_steps: optimizer steps between two files, None for no such rule.
        every_n_minutes: minutes between two files, None for no such rule.
        seconds: least seconds from a file to one at the end of an epoch.
    """

    def __init__(
        self,
        folder: RunFolder,
        curves: Path,
        files: CheckpointFiles,
        signals: Signals,
        *,
        name: str = "last",
        after: int = 0,
        monitor: str | None = None,
        mode: str = "min",
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
        seconds: float = 0.0,
    ) -> None:
        self._run, self._folder, self._curves = folder, folder.checkpoints, curves
        self._files, self._signals = files, signals
        self._name, self._after = name, after
        self._monitor, self._sign = monitor, 1.0 if mode == "min" else -1.0
        self._steps = every_n_steps or math.inf
        self._seconds = 60.0 * every_n_minutes if every_n_minutes else math.inf
        self._pause = seconds
        self._best = self._written = math.inf  # the best metric, and that of best.ckpt, times the sign
        self._found: float | None = None  # a better value whose file is not written yet
        self._held: dict[str, Any] | None = None  # the checkpoint of the best value, until it is written
        self._by_validation = False
        self._saved_at = 0
        self._waited, self._first = 0.0, True
        self._due = False
        self._signal: int | None = None
        self._events: dict[str, int] = {}
        self._began, self._before = time.monotonic(), 0.0

    # ---- state -------------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """The key in checkpoints."""
        return KEY

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, the seconds so far, the lengths of the event files, and the steps before a phase."""
        return {
            "best": self._written if self._found is None else self._found,
            "monitor": self._monitor,
            "seconds": self.seconds,
            "events": self._events,
            "after": self._after,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value and the seconds."""
        self._first = False
        self._before = state_dict["seconds"]
        if state_dict.get("monitor", self._monitor) == self._monitor:  # values of another metric cannot be compared
            self._best = self._written = state_dict["best"]

    @property
    def seconds(self) -> float:
        """Seconds of training, including those before the run was resumed."""
        return self._before + time.monotonic() - self._began

    # ---- when --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let all ranks know the folder."""
        if trainer.world_size > 1:
            self._run.agree(trainer)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handlers again, after Lightning has installed its own."""
        self._signals.take()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count steps from here, and install the signal handlers again."""
        self._saved_at = cast("Core", pl_module).at.index
        self._signals.take()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a file that is due and end training on a signal, unless a validation follows at this step."""
        self._check_due(pl_module)
        if (self._due or self._signal is not None) and not _validates_next(trainer):
            self._save_what_is_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do the same after a validation within an epoch; at its end :meth:`on_train_epoch_end` writes the file."""
        if trainer.sanity_checking:
            return
        recorder = cast("Core", pl_module).recorder
        self._monitor = recorder.monitor if self._monitor == "" else self._monitor  # a module chooses its own
        if self._monitor and (self._monitor.startswith("val/") or self._monitor in recorder.history[-1].metrics):
            self._by_validation = True
            self._compare(trainer)
        if not trainer.fit_loop.epoch_loop.done:
            self._check_due(pl_module, now=True)
            self._save_what_is_due(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint of the epoch, or keep it in memory if it is the best, and end training on a signal."""
        by_epoch = self._monitor and not self._monitor.startswith("val/") and not self._by_validation
        # the metric of a gap exists from the first validation on
        known = self._monitor in trainer.callback_metrics or cast("Core", pl_module).recorder.validated
        if by_epoch and known:
            self._compare(trainer)
        self._check_due(pl_module, now=True)
        due = self._first or self._due or self._signal is not None or self._waited >= self._pause or _is_last(trainer)
        self._save(trainer, last=due)
        if due:
            self._check_due(pl_module, now=True)
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the checkpoint of the best epoch, if it is still to be written."""
        self._write_held(trainer)

    def _check_due(self, core: pl.LightningModule, *, now: bool = False) -> None:
        """Decide whether a file is due and whether a signal arrived, with the same result on all ranks."""
        step = cast("Core", core).at
        agreed = self._signals.agreed(step.world, core.device, now=now)
        if agreed is not None:
            self._signal, seconds = agreed
            self._waited += seconds
        self._due = step.index - self._saved_at >= self._steps or self._waited >= self._seconds

    def _save_what_is_due(self, trainer: pl.Trainer) -> None:
        self._save(trainer, last=self._due or self._signal is not None)
        self._stop()

    def _stop(self) -> None:
        if self._signal is not None:
            raise Stopped(self._signal)

    # ---- what --------------------------------------------------------------------------------------------------------

    def _compare(self, trainer: pl.Trainer) -> None:
        """Remember the monitored metric if it is the best so far."""
        metrics = trainer.callback_metrics
        assert self._monitor is not None
        if self._monitor not in metrics:
            why = cast("Core", trainer.lightning_module).recorder.uncounted.why(self._monitor.partition("/")[0])
            reason = f", since {why}" if why else did_you_mean(self._monitor, metrics)
            raise UserError(f"monitor={self._monitor!r}: never logged{reason}")
        value = self._sign * float(metrics[self._monitor])
        if value < self._best:
            self._found = value

    def _save(self, trainer: pl.Trainer, *, last: bool = True) -> None:
        """Write one file and give it its names, or keep one in memory; collective: every rank must call this.

        Args:
            trainer: the Trainer.
            last: whether to write ``last``; otherwise there is something to do only for a best value.
        """
        if not last and self._found is None:
            return
        core = cast("Core", trainer.lightning_module)
        if weight := finite_weights(core.model):
            raise NonFiniteError(
                f"step {core.at.index}: the weight {weight!r} is not finite, so no checkpoint was written;"
                f" {NonFiniteError.ADVICE}"
            )
        if not last and self._waited < self._pause and _may_wait(trainer):
            self._hold(trainer)
            return
        if self._found is None:
            self._write_held(trainer)
        if trainer.is_global_zero:
            self._events = sizes_of(self._curves, trainer.loggers)
        path = self._folder / f"{NEXT}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        failed = self._files.failed
        if trainer.is_global_zero and not failed:
            failed = not self._files.try_to(lambda: self._name_it(path, last))
        if trainer.world_size > 1:
            failed = trainer.strategy.broadcast(failed)
        if not failed and self._found is not None:
            self._best = self._written = self._found
            self._held = None
        self._found = None
        if last:
            self._saved_at, self._waited, self._first = core.at.index, 0.0, False

    def _hold(self, trainer: pl.Trainer) -> None:
        """Keep the checkpoint of a best value in memory; collective."""
        if trainer.is_global_zero:
            self._events = sizes_of(self._curves, trainer.loggers)
        content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if trainer.is_global_zero:
            self._held = copy_of(content)
        assert self._found is not None
        self._best, self._found = self._found, None

    def _write_held(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint in memory as ``best``; if that fails, it stays there until the next file."""
        if self._held is None:
            return
        sizes_of(self._curves, trainer.loggers)  # which flushes what was logged before it
        path = self._folder / f"{NEXT}.ckpt"
        self._files.save_checkpoint(self._held, path)
        if not self._files.failed and self._files.try_to(lambda: self._call_best(path)):
            self._written, self._held = self._best, None

    def _call_best(self, path: Path) -> None:
        path.replace(self._folder / "best.ckpt")

    def _name_it(self, path: Path, last: bool) -> None:
        """Give the file its names: ``best`` first, so that ``last`` never records a best value without its file."""
        if self._found is not None:
            link(path, self._folder / "best.ckpt")
        if last:
            own = self._folder / f"{self._name}.ckpt"
            if own.exists():
                own.replace(self._folder / f"{previous(self._name)}.ckpt")
            path.replace(own)
        else:
            path.unlink()


def _validates_next(trainer: pl.Trainer) -> bool:
    """Return True if a validation, or the end of the epoch, follows at the same step."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return bool(loop._num_ready_batches_reached() or loop.done or loop._should_check_val_fx(fetcher))


def _is_last(trainer: pl.Trainer) -> bool:
    """Return True if training ends with this epoch."""
    loop: Any = trainer.fit_loop
    steps, epochs = loop.epoch_loop.global_step, loop.epoch_progress.current.processed
    over = 0 <= loop.max_steps <= steps or 0 <= loop.max_epochs <= epochs
    return over or bool(trainer.should_stop and loop._can_stop_early)


def _may_wait(trainer: pl.Trainer) -> bool:
    """Return True if a checkpoint may be kept in memory: it is small, and rank zero has all of it."""
    whole = type(trainer.strategy).save_checkpoint is Strategy.save_checkpoint
    return whole and is_small(cast("Core", trainer.lightning_module).model)
