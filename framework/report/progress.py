"""How far a run is: a bar on a terminal, a line an epoch elsewhere."""

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
_EVERY = 0.1  # seconds between two drawings
_ROOM_OF_BAR = 50  # characters of either, without the description


def make_progress() -> ProgressBar:
    """Return a :class:`Bar` where standard output is a terminal that a person watches, else :class:`Lines`."""
    watched = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and "CI" not in os.environ
    return Bar() if watched else Lines()


def shown(values: Mapping[str, float], width: int) -> str:
    """Return the metrics that tell most as aligned text: training loss, then what validation gave.

    Args:
        values: metrics by tag.
        width: characters at most; metrics that do not fit are left out.

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
    """Return a metric in six characters, so that numbers below each other line up; a few more where it is tiny or huge.

    Example:
        >>> number(0.98765), number(123.456), number(0.00001), number(2e6)
        ('0.9877', '123.46', '1.0e-05', '2.0e+06')
    """
    size = abs(value)
    if size != 0 and not 1e-3 <= size < 1e4 and math.isfinite(value):
        return f"{value:.1e}"
    return f"{value:.{4 - sum(size >= bound for bound in (10, 100, 1000))}f}"


def duration(seconds: float) -> str:
    """Return a time for people.

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
    """What bar and lines share: an on and off, and where the run stands."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True

    def enable(self) -> None:
        """Show progress from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Show no progress from now on; Lightning asks for it on all ranks but the first."""
        self._enabled = False

    def _epoch(self, epoch: int) -> str:
        last = self.trainer.max_epochs or -1
        return f"epoch {epoch + 1:>{len(str(last))}}/{last}" if last > 0 else f"epoch {epoch + 1}"


class Bar(_Progress):
    """One bar for the whole run, drawn anew ten times a second at most, from numbers that the recorder has read.

    Lightning's bars read a tensor every step, and one bar an epoch flickers where an epoch takes no time.
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
                smoothing=0,  # the rate over the whole run, validations and all, is what the remaining time needs
                leave=False,
                dynamic_ncols=True,
                file=sys.stdout,
            )
            self._draw(pl_module, self._epoch(trainer.current_epoch))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the bar where it was not drawn of late."""
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
        """Say how far a long validation is."""
        if self._bar is not None and time.monotonic() >= self._due:
            total = sum(trainer.num_val_batches)
            self._draw(pl_module, f"{self._epoch(trainer.current_epoch)}, validation {batch_idx + 1}/{total}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away; the table at the end stands in its place."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take the bar away before the error is told."""
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
        self._told = 0
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count; entries of before a resume were told then."""
        self._told = len(cast("Core", pl_module).recorder.history)
        self._since = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell of the epoch before: the core works out its means after the callbacks were told of its end."""
        self._tell(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell of a validation within an epoch."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            self._tell(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell of the last epoch."""
        self._tell(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tell of the last whole epoch before the error is told."""
        self._tell(pl_module)

    def _tell(self, core: pl.LightningModule) -> None:
        history = cast("Core", core).recorder.history
        now = time.monotonic()
        for entry in history[self._told :] if self._enabled else ():
            where, took = self._epoch(entry.epoch), duration(now - self._since)
            if "train/loss" not in entry.metrics:
                where += f"  step {entry.step}"
            values = shown(entry.metrics, _WIDTH - len(where) - len(took) - 4)
            print("  ".join(part for part in (where, values, took) if part), flush=True)
            self._since = now
        self._told = len(history)
