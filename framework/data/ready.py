"""Windows of ready batches: of a ``DataLoader`` or another iterable of the user's, as it is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities.data import _set_sampler_epoch

from framework.data.loaders import Window
from framework.data.memory import memory_of, recall
from framework.errors import UserError
from framework.ops.generators import set_generators, state_of_generators
from framework.ops.keyed import Stream


class WindowLoader:
    """Yields the batches of a user's loader as windows, one per optimizer step.

    The loader is used as it is: its sampler, workers and collating decide what a batch is. Its draws come from the
    process's global generators and from generators of its own. With a ``stream`` the global ones are seeded before each
    epoch and each batch, so that an epoch's batches are a function of run seed and epoch; without, they go on as they
    are, as under Lightning's own loop, and their states must be kept in checkpoints (:meth:`position`).

    Within an epoch a run is resumed by the loader's own ``load_state_dict`` if it has one; otherwise the epoch is begun
    again from the state at its start, and the batches that were trained on are read and left out.

    Args:
        loader: yields batches; of known length if it has ``__len__``.
        accumulate: batches per window; the last window of an epoch may have fewer.
        stream: keys the draws, None to leave the global generators alone.

    Attributes:
        epoch: the current epoch.
        start: windows of the epoch that were trained on before the run was resumed.
    """

    def __init__(self, loader: Any, accumulate: int = 1, stream: Stream | None = None) -> None:
        self.loader = loader
        self.epoch = 0
        self.start = 0
        self.sampler = self  # Lightning looks for the sampler's set_epoch
        self._accumulate = accumulate
        self._stream = stream
        self._batches: Iterator[Any] = iter(())
        self._begun: dict[str, Any] = {}
        self._kept: dict[str, Any] | None = None
        self._used = True
        self._read = self._batch_count = 0  # windows and batches of the epoch

    def __len__(self) -> int:
        return -(-len(self.loader) // self._accumulate)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; for the current epoch, keep the position set in :attr:`start`."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0
        _set_sampler_epoch(self.loader, epoch)

    # Lightning resumes within an epoch only if the loader has these; each rank's position is kept by the core
    def state_dict(self) -> dict[str, Any]:
        """Return an empty state; see :meth:`position`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore the state; see :meth:`resume`."""

    def position(self) -> dict[str, Any]:
        """Return this rank's position as plain data: states at the start of the epoch and now, and windows read."""
        own = self.loader.state_dict() if hasattr(self.loader, "load_state_dict") else None
        return {"begun": self._begun, "now": self._state(), "read": self._read, "loader": own}

    def resume(self, kept: dict[str, Any]) -> None:
        """Continue from a position when the next epoch is begun, after the windows of :attr:`start`."""
        self._kept = kept

    @contextmanager
    def aside(self) -> Iterator[Iterator[Any]]:
        """Return a context with an iterator of the epoch's batches that leaves generators and samplers as they were."""
        present = {"draws": state_of_generators(), "memory": memory_of(self.loader)}
        try:
            self._set(self._begun or present)
            yield iter(self.loader)
        finally:
            self._set(present)

    def _state(self) -> dict[str, Any]:
        draws = state_of_generators() if self._stream is None else None
        return {"draws": draws, "memory": memory_of(self.loader)}

    def _set(self, state: dict[str, Any], *, memory: bool = True) -> None:
        if state["draws"] is not None:
            set_generators(state["draws"])
        if memory:
            recall(self.loader, state["memory"])

    def _begin(self) -> None:
        self._seed(-1)
        self._begun = self._state()
        self._batches = iter(self.loader)
        self._read = self._batch_count = 0

    def _seed(self, batch: int) -> None:
        if self._stream is not None:
            key = self._stream.key(self.epoch, batch + 1)
            torch.default_generator.manual_seed(key >> 1)
            random.seed(key)
            np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 - the generator that the user's data set may draw from

    def __iter__(self) -> Iterator[Window]:
        if self._used:  # Lightning begins an iteration only to see whether it can
            self._begin()  # here and not at the first batch, since a DataLoader draws a seed
            self._used = False
        return self._windows()

    def _windows(self) -> Iterator[Window]:
        self._used = True
        yield from self._go_on()
        while window := self._next():
            yield window
            if len(window.batches) < self._accumulate:
                break
        self._check_end()

    def _next(self) -> Window | None:
        """Return the next window, None if there are no more batches."""
        batches: list[Any] = []
        for offset in range(self._accumulate):
            self._seed(self._read * self._accumulate + offset)
            batches += islice(self._batches, 1)
        self._batch_count += len(batches)
        self._read += 1 if batches else 0
        return Window(batches, 0, None, None) if batches else None

    def _go_on(self) -> list[Window]:
        """Go to the position of a resumed run; return the windows that Lightning had read ahead there."""
        kept, self._kept = self._kept, None
        if kept is None or not self.start:
            if kept is not None:  # between two epochs
                self._set(kept["now"])
                self._begin()
            return []
        if kept["loader"] is not None:
            self.loader.load_state_dict(kept["loader"])
            self._batches = iter(self.loader)
            self._read, self._batch_count = self.start, self.start * self._accumulate
            ahead = []
        else:
            self._set(kept["begun"])
            self._begin()
            for _ in range(self.start):
                self._next()
            ahead = [window for _ in range(kept["read"] - self.start) if (window := self._next())]
        self._set(kept["now"], memory=False)
        return ahead

    @property
    def exit_code(self) -> int | None:
        """None: torch's own loader raises an error if one of its workers dies."""
        return None

    def close(self) -> None:
        """Release the iterator, which ends the loader's workers."""
        self._batches = iter(())

    def _check_end(self) -> None:
        name, read = type(self.loader).__name__, self._batch_count
        try:
            announced = len(self.loader)
        except TypeError:  # a stream
            announced = read
        if read == 0:
            raise UserError(f"Data(train=...): {name} yielded no batch; give at least one")
        if read < announced:
            raise UserError(
                f"Data(train=...): {name} ended after {read} batches, but its length is {announced}; correct its"
                " __len__, or leave it out"
            )
