"""When a run's checkpoints are written, and which ones are kept."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from framework.checkpoint.events import sizes_of
from framework.checkpoint.file import CheckpointFiles, link
from framework.checkpoint.signals import Signals, Stopped
from framework.errors import NonFiniteError, UserError, did_you_mean
from framework.ops.finite import finite_weights

if TYPE_CHECKING:
    from framework.engine.core import Core

KEY = "checkpoints"  # of what is kept here in a checkpoint
NEXT = "next"  # name of a file that is being given its names


class Checkpoints(Checkpoint):
    """Writes the last state of a run, keeps the one before it, and the state of the best epoch.

    ``last`` is written at the end of each epoch, every so many steps or minutes between two steps, and on a signal,
    after which training ends; the file that it replaces stays as ``previous``. ``best`` is another name of the same
    file where that epoch is the best so far.

    Lightning's ``ModelCheckpoint`` is not used: with a monitor its last file is the best one, it has no file before the
    last, it counts a best epoch as kept whose file could not be written, and it looks at the clock of each rank.

    A file within an epoch is written after the validation at its step, where there is one, so that everything that was
    logged at its step is older than it, and nothing is logged twice when a run goes on from there.

    Args:
        folder: folder of the files.
        curves: folder of the event files.
        files: how they are written.
        signals: who may wish to stop.
        name: name of the last file; another than ``"last"`` for a later phase, which has no best.
        after: optimizer steps of the run before the phase, 0 for the run itself.
        monitor: the metric by which an epoch is best, None for none.
        mode: ``"min"`` or ``"max"``.
        every_n_steps: optimizer steps between two files, None for no such rule.
        every_n_minutes: minutes between two files, None for no such rule.
    """

    def __init__(
        self,
        folder: Path,
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
    ) -> None:
        self._folder, self._curves, self._files, self._signals = folder, curves, files, signals
        self._name, self._after = name, after
        self._monitor, self._sign = monitor, 1.0 if mode == "min" else -1.0
        self._steps = every_n_steps or math.inf
        self._seconds = 60.0 * every_n_minutes if every_n_minutes else math.inf
        self._best = math.inf  # of the file that is there, times the sign
        self._found: float | None = None  # a better value whose file is due
        self._saved_at = 0
        self._waited = 0.0
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
        """Return the best value, the run's seconds so far, how long its event files are, and what it comes after."""
        best = self._best if self._found is None else self._found
        return {"best": best, "seconds": self.seconds, "events": self._events, "after": self._after}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them."""
        self._best, self._before = state_dict["best"], state_dict["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds of training, over all the times that the run went on."""
        return self._before + time.monotonic() - self._began

    # ---- when --------------------------------------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, which puts its handlers in as the last thing before."""
        self._signals.take()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here."""
        self._saved_at = cast("Core", pl_module).at.index
        self._signals.take()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write what is due between two steps, and end training on a signal; after a validation, where one follows."""
        self._ask(pl_module)
        if (self._due or self._signal is not None) and not _validates_next(trainer):
            self._save_what_is_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do the same within an epoch, and keep the best one; at the epoch's end there is more to wait for."""
        if trainer.sanity_checking:
            return
        if self._monitor is not None and self._monitor.startswith("val/"):
            self._look(trainer)
        if not trainer.fit_loop.epoch_loop.done:
            self._ask(pl_module, now=True)
            self._save_what_is_due(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's state, and end training on a signal."""
        by_epoch = self._monitor is not None and not self._monitor.startswith("val/")
        # a gap is known from the first validation on
        known = self._monitor in trainer.callback_metrics or cast("Core", pl_module).recorder.validated
        if by_epoch and known:
            self._look(trainer)
        self._save(trainer)
        self._ask(pl_module, now=True)
        self._stop()

    def _ask(self, core: pl.LightningModule, *, now: bool = False) -> None:
        """Find out whether a file is due, and whether there was a signal; all ranks come to the same."""
        step = cast("Core", core).at
        answer = self._signals.agreed(step.world, core.device, now=now)
        if answer is not None:
            self._signal, seconds = answer
            self._waited += seconds
        self._due = step.index - self._saved_at >= self._steps or self._waited >= self._seconds

    def _save_what_is_due(self, trainer: pl.Trainer) -> None:
        last = self._due or self._signal is not None
        if last or self._found is not None:
            self._save(trainer, last=last)
        self._stop()

    def _stop(self) -> None:
        if self._signal is not None:
            raise Stopped(self._signal)

    # ---- what --------------------------------------------------------------------------------------------------------

    def _look(self, trainer: pl.Trainer) -> None:
        """Find out whether the metrics at hand are the best so far."""
        metrics = trainer.callback_metrics
        assert self._monitor is not None
        if self._monitor not in metrics:
            raise UserError(f"monitor={self._monitor!r}: never logged{did_you_mean(self._monitor, metrics)}")
        value = self._sign * float(metrics[self._monitor])
        if value < self._best:
            self._found = value

    def _save(self, trainer: pl.Trainer, *, last: bool = True) -> None:
        """Write one file and give it its names; all ranks have to ask."""
        core = cast("Core", trainer.lightning_module)
        if weight := finite_weights(core.model):
            raise NonFiniteError(
                f"step {core.at.index}: the weight {weight!r} is not finite, so no checkpoint was written;"
                f" {NonFiniteError.ADVICE}"
            )
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
            self._best = self._found
        self._found = None
        if last:
            self._saved_at, self._waited = core.at.index, 0.0

    def _name_it(self, path: Path, last: bool) -> None:
        """Give a file its names; the best one first, so that a last one never knows of a best that is not there."""
        if self._found is not None:
            link(path, self._folder / "best.ckpt")
        if last:
            own = self._folder / f"{self._name}.ckpt"
            if own.exists():
                own.replace(self._folder / f"{previous(self._name)}.ckpt")
            path.replace(own)
        else:
            path.unlink()


def previous(name: str) -> str:
    """Return the name of the file that was there before the one of this name."""
    return "previous" if name == "last" else f"previous_{name}"


def _validates_next(trainer: pl.Trainer) -> bool:
    """Tell whether a validation, or the epoch's end, follows at the same step."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return bool(loop._num_ready_batches_reached() or loop.done or loop._should_check_val_fx(fetcher))
