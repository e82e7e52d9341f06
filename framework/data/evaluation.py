"""Loaders of evaluation batches, in order: of samples, and of a user's loader."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler

from framework.data.parts import Columns, Part, as_dataset, is_held, length_of
from framework.data.roles import Roles
from framework.data.sharing import Turns, shared, twin
from framework.data.stream import announced, is_counted, source_name, warn_if_longer
from framework.data.workers import Workers
from framework.errors import UserError
from framework.ops.generators import seed_generators, set_generators, state_of_generators


class EvalLoader:
    """Yields the batches of a part in order, from this rank's contiguous slice of it.

    Args:
        part: the part.
        batch_size: samples per batch.
        rank: index of this process.
        world: number of processes.
        workers: number of loader processes.
        collate: makes a batch of a list of samples, None for torch's ``default_collate``.
        roles: names the parts of each batch, None to leave them where they stand.
    """

    def __init__(
        self,
        part: Part,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
        roles: Roles | None = None,
    ) -> None:
        self._part, self._roles = part, roles or None
        self._size = batch_size
        length = length_of(part)
        self._low, self._high = length * rank // world, length * (rank + 1) // world
        self._workers: Workers | None = None
        if collate is not None or not is_held(part):
            samples = torch.utils.data.Subset(as_dataset(part), range(self._low, self._high))
            batches = BatchSampler(range(self._high - self._low), self._size, drop_last=False)
            self._workers = Workers(samples, batches, collate, workers, torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return -(-(self._high - self._low) // self._size)

    def __iter__(self) -> Iterator[Any]:
        roles = self._roles
        if self._workers is not None:
            self._workers.begin()
        for low in range(self._low, self._high, self._size):
            batch = self._held(low) if self._workers is None else self._workers.next()
            yield batch if roles is None else roles(batch)

    def batch(self, number: int) -> Any:
        """Return one batch by its number, loaded in this process."""
        if self._workers is None:
            batch = self._held(self._low + number * self._size)
        else:
            batch = self._workers.load(range(self._high - self._low)[number * self._size : (number + 1) * self._size])
        return batch if self._roles is None else self._roles(batch)

    def _held(self, low: int) -> Any:
        high = min(low + self._size, self._high)
        if isinstance(self._part, Columns):
            return self._part.between(low, high)
        return tuple([t[low:high] for t in self._part])  # type: ignore[union-attr]

    @property
    def exit_code(self) -> int | None:
        """The exit code of a worker that failed, None if none did."""
        return None if self._workers is None else self._workers.exit_code

    def close(self) -> None:
        """Stop the workers; they start again when the loader is next used."""
        if self._workers is not None:
            self._workers.end()


class ReadyLoader:
    """Yields the batches of a user's loader for evaluation; ranks take them in turn.

    The process's generators are seeded the same each time, and then left as they were: a loader that shuffles changes
    no draw of training, and every rank sees the same order.

    Args:
        loader: yields batches.
        part: ``"train"``, ``"val"`` or ``"test"``, which errors name.
        rank: index of this process.
        world: number of processes.
        roles: names the parts of each batch, None to leave them where they stand.
        sharded: whether the loader gives each rank its own batches already.
    """

    def __init__(
        self,
        loader: Any,
        part: str,
        *,
        rank: int = 0,
        world: int = 1,
        roles: Roles | None = None,
        sharded: bool = False,
    ) -> None:
        # workers of its own, since the same loader may be the training loader too
        self._loader, self._part, self._roles = twin(loader), part, roles or None
        self._rank, self._world = (0, 1) if sharded else (rank, world)
        self._looked = rank > 0 or is_counted(loader)  # beyond the end

    def __len__(self) -> int:
        return max(-(-(len(self._loader) - self._rank) // self._world), 0)

    def __iter__(self) -> Iterator[Any]:
        present, read = state_of_generators(), 0
        seed_generators(0)
        try:
            batches = shared(self._loader, self._rank, self._world, rest=True) if self._world > 1 else self._loader
            if isinstance(turns := getattr(batches, "batch_sampler", None), Turns):
                turns.draws = state_of_generators()
            batches, end = iter(batches), announced(self)
            for batch in itertools.islice(batches, end):
                read += 1
                if read == end and not self._looked:  # here, since an evaluation does not ask for more
                    self._looked = True
                    warn_if_longer(self._loader, self._part, batches, read * self._world + 1)
                yield batch if self._roles is None else self._roles(batch)
        finally:
            set_generators(present)
        if read == 0 and self._world == 1:
            used = hasattr(self._loader, "__next__")
            what = (
                "is used up: give an object whose __iter__ starts over"
                if used
                else "yielded no batch; give at least one"
            )
            raise UserError(f"Data({self._part}=...): {source_name(self._loader)} {what}")

    @property
    def exit_code(self) -> int | None:
        """None: torch's own loader raises an error if one of its workers dies."""
        return None

    def close(self) -> None:
        """Do nothing: the loader is the user's."""
