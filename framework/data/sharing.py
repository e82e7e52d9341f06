"""A user's loader shared among ranks: each takes its turn, so that no batch comes twice."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from framework.ops.generators import set_generators, state_of_generators


def shared(loader: Any, rank: int, world: int, *, rest: bool = False) -> Any:
    """Return an iterable of the batches of a loader that are this rank's: every ``world``-th one.

    Of a ``DataLoader`` over a map-style data set only these are loaded; a stream is read whole by each rank.

    Args:
        loader: the loader, which must yield the same batches on every rank.
        rank: index of this process.
        world: number of processes.
        rest: whether the first ranks get the batches that do not suffice for all; otherwise they are left out.
    """
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset) and loader.batch_sampler:
        mine = twin(loader)
        # set after construction, which DataLoader forbids: making another one would lose what a subclass adds
        mine.__dict__["batch_sampler"] = Turns(loader.batch_sampler, rank, world, rest)
        return mine
    return _InTurn(loader, rank, world, rest) if world > 1 else loader


def gives_ranks_their_own(loader: Any) -> bool:
    """Return whether a loader's sampler gives each rank its own samples."""
    samplers = [getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    samplers.append(getattr(samplers[1], "sampler", None))
    return any(isinstance(one, DistributedSampler) for one in samplers)


def twin(loader: Any) -> Any:
    """Return a loader with the same settings; of a ``DataLoader`` a copy whose workers are its own.

    With persistent workers a second iterator of the same loader would end the first one.
    """
    if not isinstance(loader, DataLoader):
        return loader
    other = copy.copy(loader)
    other._iterator = None
    return other


class Turns(Sampler[Any]):
    """Yields the batches of indices that are this rank's.

    Args:
        batch_sampler: yields lists of indices, the same on every rank if its draws are.
        rank: index of this process.
        world: number of processes.
        rest: see :func:`shared`.

    Attributes:
        draws: states of the process's generators from which the sampler draws, the same on every rank; None for those
            at the time. On one rank only the first draw is from them, with which torch's samplers fix their order.
    """

    def __init__(self, batch_sampler: Any, rank: int, world: int, rest: bool = False) -> None:
        self.batch_sampler = batch_sampler
        self.draws: dict[str, Any] | None = None
        self._rank, self._world, self._rest = rank, world, rest

    def __len__(self) -> int:
        whole, rest = divmod(len(self.batch_sampler), self._world)
        return whole + (self._rest and self._rank < rest)

    def __iter__(self) -> Iterator[Any]:
        batches, first = iter(self.batch_sampler), True
        while True:
            apart = self.draws is not None and (first or self._world > 1)
            present = state_of_generators() if apart else {}
            if apart and self.draws is not None:
                set_generators(self.draws)
            group = list(islice(batches, self._world))
            if apart:
                self.draws = state_of_generators()
                set_generators(present)
            first = False
            if len(group) <= self._rank or (len(group) < self._world and not self._rest):
                return
            yield group[self._rank]


class _InTurn:
    """Yields every ``world``-th batch of an iterable, which is read whole."""

    def __init__(self, batches: Iterable[Any], rank: int, world: int, rest: bool) -> None:
        self._batches, self._rank, self._world, self._rest = batches, rank, world, rest

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._batches)
        while group := list(islice(batches, self._world)):
            if len(group) <= self._rank or (len(group) < self._world and not self._rest):
                return
            yield group[self._rank]
