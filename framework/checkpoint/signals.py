"""Ctrl-C and SIGTERM while a run trains: noticed at once, acted on between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS = 1.0  # how often ranks look at one another's signals


class Stopped(Exception):
    """A signal ended training between two steps, after the checkpoint was written.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop; a second one interrupts at once.

    As a context it puts the handlers in, and the ones before back at its end. Outside of the main thread, where Python
    takes no signals, it does nothing.

    Attributes:
        received: number of the first signal that this process received, None while there was none.
        shared: number of the signal on which the ranks agreed, None while there was none.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.shared: int | None = None
        self._before: dict[int, Any] = {}
        self._asked = self._compared = 0
        self._next = 1  # ranks compare notes when they have asked that often
        self._since = time.monotonic()

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            self.take()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def take(self) -> None:
        """Put the handlers in (again): Lightning puts its own for SIGTERM over them, which ends in exit code 0.

        Its handler also waits for the other ranks within the handler; these may be waiting for something else.
        """
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            for one in _SIGNALS:  # a third one ends the process as if nobody listened
                signal.signal(one, signal.SIG_DFL)
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, world: int, device: torch.device, *, now: bool = False) -> tuple[int | None, float] | None:
        """Return the signal that any rank received, and the seconds since the last answer; to be asked each step.

        With several ranks all have to ask, and get the same answer. They compare notes about once a second, at the same
        step: after as many steps as took that long before. In between the answer is None.

        Args:
            world: number of ranks.
            device: where ranks exchange tensors.
            now: compare notes in any case.
        """
        self._asked += 1
        if self._asked < self._next and not now:
            return None
        moment = time.monotonic()
        seconds, self._since = moment - self._since, moment
        if world == 1:
            self.shared = self.received
            return self.shared, seconds
        notes = torch.tensor([float(self.received or 0), seconds], device=device)
        torch.distributed.all_reduce(notes, torch.distributed.ReduceOp.MAX)
        number, seconds = notes.tolist()
        steps, self._compared = self._asked - self._compared, self._asked
        self._next = self._asked + max(1, min(int(steps * _SECONDS / max(seconds, 1e-6)), 2 * steps))
        self.shared = int(number) or None
        return self.shared, seconds


class StopOnSignal(pl.Callback):
    """Ends training on a signal where no checkpoints are kept; where they are, those who write them end it.

    Args:
        signals: who may wish to stop.
    """

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, which puts its handlers in as the last thing before."""
        self._signals.take()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take them over where nothing was checked before."""
        self._signals.take()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End training between two steps."""
        answer = self._signals.agreed(trainer.world_size, pl_module.device)
        if answer is not None and answer[0] is not None:
            raise Stopped(answer[0])
