"""Progress of a run: a bar on a terminal, elsewhere one line per epoch."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

if TYPE_CHECKING:
    from framework.engine.core import Core

_WIDTH = 100
_BAR = "{desc} {bar:12} {elapsed} < {remaining}  {rate_noinv_fmt:>14}  "
_WITHOUT_END = "{desc}  {n_fmt} steps  {elapsed}  {rate_noinv_fmt}  "
_EVERY = 0.1  # minimal time between two redraws, in seconds
_ROOM_OF_BAR = 50  # characters of a bar, without the description


def make_progress() -> ProgressBar:
    """Return a :class:`Bar` if standard output is an interactive terminal, else :class:`Lines`."""
    watched = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and "CI" not in os.environ
    return Bar() if watched else Lines()


def shown(values: Mapping[str, float], width: int) -> str:
    """Return the most important metrics as aligned text: training loss, then those of the validation.

    Args:
        values: metrics by tag.
        width: maximal number of characters; metrics that do not fit are left out.

    Example:
        >>> shown({"val/accuracy": 0.5, "val/loss": 12.25, "train/loss": 1e-5, "lr": 0.1}, 80)
        'train/loss 1.0e-05  val/loss 12.250  val/accuracy 0.5000'
    """
    evaluated = [tag for tag in values if tag.startswith("val/")] or [tag for tag in values if tag.startswith("train/")]
    first = ("train/loss", "val/loss")
    tags = [tag for tag in first if tag in values] + [
        tag for tag in evaluated if tag not in (*first, "train/objective")
    ]
    text = ""
    for tag in tags:
        part = f"{tag} {number(values[tag]):>6}"
        if len(text) + len(part) + 2 > width:
            break
        text += f"  {part}" if text else part
    return text


def number(value: float) -> str:
    """Format a metric in six characters, so that columns of numbers are aligned; in a few more if it is tiny or huge.

    Example:
        >>> number(0.98765), number(123.456), number(0.00001), number(2e6)
        ('0.9877', '123.46', '1.0e-05', '2.0e+06')
    """
    size = abs(value)
    if size != 0 and not 1e-3 <= size < 1e4 and math.isfinite(value):
        return f"{value:.1e}"
    return f"{value:.{4 - sum(size >= bound for bound in (10, 100, 1000))}f}"


def duration(seconds: float) -> str:
    """Format a duration in human-readable units.

    Example:
        >>> duration(0.0213), duration(12.34), duration(75), duration(7384)
        ('0.02 s', '12.3 s', '1 min 15 s', '2 h 03 min')
    """
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02d} min" if hours else f"{minutes} min {rest:02d} s"


class _Progress(ProgressBar):
    """Base of bar and lines: switched on and off by Lightning, and the text of the current epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    def enable(self) -> None:
        """Show progress from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Show no progress from now on; Lightning calls this on all ranks but the first."""
        self._enabled = False

    def _epoch(self, epoch: int) -> str:
        last = self.trainer.max_epochs or -1
        return f"epoch {epoch + 1:>{len(str(last))}}/{last}" if last > 0 else f"epoch {epoch + 1}"


class Bar(_Progress):
    """One bar for the whole run, redrawn at most ten times a second, from values that the recorder has already read.

    Lightning's bars read a tensor in every step, and one bar per epoch flickers if epochs are short.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._total: int | None = None
        self._due = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the bar of the whole run."""
        if self._enabled:
            steps = trainer.estimated_stepping_batches
            self._total = int(steps) if 0 < steps < math.inf else None
            self._bar = tqdm(
                total=self._total,
                initial=trainer.global_step,
                unit=" steps",
                smoothing=0,  # the remaining time follows from the rate over the whole run, validations included
                leave=False,
                dynamic_ncols=True,
                file=sys.stdout,
            )
            self._draw(pl_module, self._epoch(trainer.current_epoch))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw the bar unless it was drawn in the last 0.1 s."""
        if self._bar is not None and time.monotonic() >= self._due:
            self._draw(pl_module, self._epoch(trainer.current_epoch))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the progress of a long validation."""
        if self._bar is not None and time.monotonic() >= self._due:
            total = sum(trainer.num_val_batches)
            self._draw(pl_module, f"{self._epoch(trainer.current_epoch)}, validation {batch_idx + 1}/{total}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar; the summary is printed in its place."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar before the error is printed."""
        self._close()

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar."""
        tqdm.write(sep.join(map(str, args)), file=sys.stdout, **kwargs)

    def _draw(self, core: pl.LightningModule, where: str) -> None:
        assert self._bar is not None
        recorder = cast("Core", core).recorder
        self._due = time.monotonic() + _EVERY
        self._bar.n = cast("Core", core).at.index
        self._bar.set_description_str(where, refresh=False)
        room = shutil.get_terminal_size().columns - len(where) - _ROOM_OF_BAR
        self._bar.bar_format = (_BAR if self._total else _WITHOUT_END) + shown(recorder.latest, room)
        self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Lines(_Progress):
    """One line for each epoch, and for each validation within it, for logs and pipes."""

    def __init__(self) -> None:
        super().__init__()
        self._printed = 0
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and skip entries from before the run was resumed, which were printed then."""
        self._printed = len(cast("Core", pl_module).recorder.history)
        self._since = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the previous epoch: the core computes its means only after the callbacks' ``on_train_epoch_end``."""
        self._print_new(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a validation within an epoch."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            self._print_new(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the last epoch."""
        self._print_new(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Print the last complete epoch before the error is printed."""
        self._print_new(pl_module)

    def _print_new(self, core: pl.LightningModule) -> None:
        history = cast("Core", core).recorder.history
        now = time.monotonic()
        for entry in history[self._printed :] if self._enabled else ():
            where, took = self._epoch(entry.epoch), duration(now - self._since)
            if "train/loss" not in entry.metrics:
                where += f"  step {entry.step}"
            values = shown(entry.metrics, _WIDTH - len(where) - len(took) - 4)
            print("  ".join(part for part in (where, values, took) if part), flush=True)
            self._since = now
        self._printed = len(history)
