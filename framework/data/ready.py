"""Windows of ready batches: of a ``DataLoader`` or another iterable of the user's, as it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning_fabric.utilities.data import _set_sampler_epoch

from framework.data.loaders import Window
from framework.data.memory import memory_of, recall
from framework.data.roles import Roles
from framework.data.sharing import Turns, shared, twin
from framework.data.stream import announced, is_counted, length_in_words, source_name, warn_if_longer
from framework.errors import UserError
from framework.ops.generators import seed_generators, set_generators, state_of_generators
from framework.ops.keyed import Stream


class WindowLoader:
    """Yields the batches of a user's loader as windows, one per optimizer step.

    The loader is used as it is: its sampler, workers and collating decide what a batch is. Its draws come from the
    process's global generators and from generators of its own. With a ``stream`` the global ones are seeded before each
    epoch and each batch, so that an epoch's batches are a function of run seed and epoch; without, they go on as they
    are, as under Lightning's own loop, and their states must be kept in checkpoints (:meth:`position`).

    Within an epoch a run is resumed by the loader's own ``load_state_dict`` if it has one and its order is not keyed;
    otherwise the epoch is begun again from the state at its start, and the batches that were trained on are left out.

    Args:
        loader: yields batches; if it has ``__len__``, an epoch ends after that many, with a warning if there are more.
        accumulate: batches per window; the last window of an epoch may have fewer.
        stream: keys the draws, None to leave the global generators alone.
        rank: index of this process.
        world: number of processes, which take the loader's batches in turn; up to ``world - 1`` at the end of an epoch
            are left out.
        sharded: whether the loader gives each rank its own batches already; an epoch then ends for all ranks when it
            ends for one.
        roles: names the parts of each batch, None to leave them where they stand.

    Attributes:
        epoch: the current epoch.
        start: windows of the epoch that were trained on before the run was resumed.
    """

    def __init__(
        self,
        loader: Any,
        accumulate: int = 1,
        stream: Stream | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        sharded: bool = False,
        roles: Roles | None = None,
    ) -> None:
        self.loader = loader
        self.epoch = 0
        self.start = 0
        self.sampler = self  # Lightning looks for the sampler's set_epoch
        self._accumulate, self._stream, self._roles = accumulate, stream, roles or None
        self._rank, self._world, self._sharded = rank, world, world > 1 and sharded
        take_turns = (world > 1 and not sharded) or (stream is not None and not self._sharded)
        self._source = shared(loader, rank, world) if take_turns else loader
        turns = getattr(self._source, "batch_sampler", None)
        self._turns = turns if isinstance(turns, Turns) else None
        self._batches: Iterator[Any] = iter(())
        self._begun: dict[str, Any] = {}
        self._kept: dict[str, Any] | None = None
        self._used = True
        self._read = self._batch_count = 0  # windows and batches of the epoch
        self._share = self._announced()
        self._looked = is_counted(loader)  # beyond the end

    def __len__(self) -> int:
        batches = self._announced()
        if batches is None:
            raise TypeError(f"{source_name(self.loader)} has no length")
        return -(-batches // self._accumulate)

    def check_length(self) -> None:
        """Check that the loader announces a batch for each rank, without which Lightning would train nothing."""
        if self._announced() == 0:
            who, length = length_in_words(self.loader)
            raise UserError(
                f"Data(train=...): the length of {who} is {length}, less than a batch for each of {self._world} ranks;"
                " correct its __len__, or leave it out"
            )

    def _announced(self) -> int | None:
        """Return how many batches of an epoch are this rank's, None if the loader does not say."""
        batches = announced(self.loader)
        return batches if batches is None or self._sharded else batches // self._world

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
        # where the order is keyed, reading again finds it; a loader's own state does not hold the sampler's draws
        stateful = self._turns is None and hasattr(self._source, "load_state_dict")
        own = self._source.state_dict() if stateful else None
        return {"begun": self._begun, "now": self._state(), "read": self._read, "loader": own}

    def resume(self, kept: dict[str, Any]) -> None:
        """Continue from a position when the next epoch is begun, after the windows of :attr:`start`."""
        self._kept = kept

    @contextmanager
    def aside(self) -> Iterator[Iterator[Any]]:
        """Return a context with an iterator of the epoch's batches that leaves generators and samplers as they were."""
        if self.is_spent_by_reading:
            name = source_name(self.loader)
            raise UserError(
                f"Data(train=...): {name} is an iterator, which yields its batches once: to look at some besides"
                " training, give an object whose __iter__ starts over, or a DataLoader"
            )
        present = {"draws": state_of_generators(), "memory": memory_of(self.loader)}
        try:
            if self._stream is None or self._begun:
                self._set(self._begun or present)
            self._seed(-1)
            yield map(self._named, iter(twin(self.loader)))
        finally:
            self._set(present)

    @property
    def is_spent_by_reading(self) -> bool:
        """Whether the loader is an iterator, which cannot start over."""
        return hasattr(self.loader, "__next__")

    def _named(self, batch: Any) -> Any:
        return batch if self._roles is None else self._roles(batch)

    def _state(self) -> dict[str, Any]:
        draws = state_of_generators() if self._stream is None else None
        return {"draws": draws, "memory": memory_of(self.loader)}

    def _set(self, state: dict[str, Any], *, memory: bool = True) -> None:
        if state["draws"] is not None:
            set_generators(state["draws"])
        if memory:
            recall(self.loader, state["memory"])

    def _begin(self) -> None:
        self._look_beyond()
        self._seed(-1)
        self._begun = self._state()
        self._open()
        self._read = self._batch_count = 0

    def _open(self) -> None:
        """Begin an iteration of the loader."""
        self._share = self._announced()
        if self._turns is not None and self._stream is not None:
            # the order is one for all ranks and numbers of workers, while the workers of each rank draw their own
            self._turns.draws = state_of_generators()
            key = self._stream.key(self.epoch, 0, self._rank)
            self._source.__dict__["generator"] = torch.Generator().manual_seed(key >> 1)
        self._batches = iter(self._source)

    def _seed(self, batch: int) -> None:
        if self._stream is not None:
            own = self._sharded or (self._turns is not None and batch >= 0)
            seed_generators(self._stream.key(self.epoch, batch + 1, self._rank if own else 0))

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
        rest = self._accumulate if self._share is None else self._share - self._batch_count
        for offset in range(min(self._accumulate, rest)):
            self._seed(self._read * self._accumulate + offset)
            batches += islice(self._batches, 1)
        if self._sharded and not self._all_have(len(batches)):
            return None
        self._batch_count += len(batches)
        self._read += 1 if batches else 0
        return Window([self._named(batch) for batch in batches], 0, None, None) if batches else None

    def _all_have(self, count: int) -> bool:
        """Return whether every rank has a batch; a rank without one would let the others wait forever."""
        counts: list[Any] = [None] * self._world
        torch.distributed.all_gather_object(counts, count)
        if max(counts) > 0 and min(counts) == 0 and self._rank == 0:
            ended = counts.index(0)
            warnings.warn(
                f"Data(train=...): the ranks' loaders yield unequal numbers of batches: rank {ended} ended after"
                f" {self._read} steps, and the epoch ends there for all",
                stacklevel=2,
            )
        return bool(min(counts))

    def _go_on(self) -> list[Window]:
        """Go to the position of a resumed run; return the windows that Lightning had read ahead there."""
        kept, self._kept = self._kept, None
        if kept is None or not self.start:
            if kept is not None:  # between two epochs
                self._set(kept["now"])
                self._begin()
            return []
        if kept["loader"] is not None:
            self._source.load_state_dict(kept["loader"])
            self._seed(-1)
            self._open()
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
        self._look_beyond()
        self._batches = iter(())

    def _look_beyond(self) -> None:
        """Warn once if the loader yields more batches than its length, after an epoch of that many."""
        if not self._looked and self._batch_count and self._batch_count == self._share:
            self._looked = True
            if self._rank == 0:
                seen = (self._batch_count + 1) * (1 if self._sharded else self._world)
                warn_if_longer(self.loader, "train", self._batches, seen)

    def _check_end(self) -> None:
        self._look_beyond()
        name, read = source_name(self.loader), self._batch_count
        if read == 0 and self.epoch and self.is_spent_by_reading:
            raise UserError(
                f"Data(train=...): {name} is used up: an iterator yields its batches once; give an object whose"
                " __iter__ starts over, or trainer.max_epochs=1"
            )
        if read == 0:
            raise UserError(f"Data(train=...): {name} yielded no batch; give at least one")
        if self._share is not None and read < self._share and not self._sharded:
            who, length = length_in_words(self.loader)
            ranks = f" on each of {self._world} ranks" if self._world > 1 else ""
            raise UserError(
                f"Data(train=...): {who} ended after {read} batches{ranks}, but its length is {length}; correct its"
                " __len__, or leave it out"
            )
