"""Ctrl-C and SIGTERM during training: recorded at once, acted on between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS = 1.0  # between two exchanges of signals among ranks


class Stopped(Exception):
    """Raised to end training between two steps after a signal, once the checkpoint is written.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; a second one interrupts at once.

    As a context manager it installs its signal handlers, and restores the previous ones at the end. Outside of the main
    thread, where Python receives no signals, it does nothing.

    Attributes:
        received: number of the first signal that this process received, None before one.
        shared: number of the signal that all ranks know of, None before one.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.shared: int | None = None
        self._before: dict[int, Any] = {}
        self._calls = self._exchanged_at = 0
        self._next = 1  # the call of agreed() at which ranks exchange signals next
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
        """Install the handlers, also again: Lightning replaces the one for SIGTERM by its own.

        Lightning's handler ends the process with exit code 0, and waits within the handler for the other ranks, which
        may be waiting for something else.
        """
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            for one in _SIGNALS:  # a third one ends the process as without handlers
                signal.signal(one, signal.SIG_DFL)
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, world: int, device: torch.device, *, now: bool = False) -> tuple[int | None, float] | None:
        """Return the signal that any rank received and the seconds since the last exchange; called after each step.

        Collective: every rank must call this, and all get the same result. About once a second the ranks all-reduce
        their signals, after as many steps as took a second before.

        Args:
            world: number of ranks.
            device: device of the tensor that is all-reduced.
            now: exchange signals at this call in any case.

        Returns:
            The signal's number, or None if no rank received one, and the seconds; None between two exchanges.
        """
        self._calls += 1
        if self._calls < self._next and not now:
            return None
        moment = time.monotonic()
        seconds, self._since = moment - self._since, moment
        if world == 1:
            self.shared = self.received
            return self.shared, seconds
        flags = torch.tensor([float(self.received or 0), seconds], device=device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        number, seconds = flags.tolist()
        steps, self._exchanged_at = self._calls - self._exchanged_at, self._calls
        self._next = self._calls + max(1, min(int(steps * _SECONDS / max(seconds, 1e-6)), 2 * steps))
        self.shared = int(number) or None
        return self.shared, seconds


class StopOnSignal(pl.Callback):
    """Lightning callback that ends training on a signal in runs without checkpoints; ``Checkpoints`` does in others.

    Args:
        signals: the signals that request a stop.
    """

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the signal handlers again, after Lightning has installed its own."""
        self._signals.take()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install them in runs without a sanity check too."""
        self._signals.take()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End training between two steps after a signal."""
        agreed = self._signals.agreed(trainer.world_size, pl_module.device)
        if agreed is not None and agreed[0] is not None:
            raise Stopped(agreed[0])
