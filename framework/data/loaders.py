"""``TrainLoader``: training batches in keyed order, one window per optimizer step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from framework.data.order import Order
from framework.data.parts import Columns, Part, as_dataset, is_held, length_of
from framework.data.roles import Roles
from framework.data.samples import Samples, SampleTransform
from framework.data.workers import Workers
from framework.errors import UserError
from framework.ops.keyed import Stream


class Window(NamedTuple):
    """The micro-batches of one optimizer step on one rank.

    Args:
        batches: the collated micro-batches.
        start: position of the first sample among all samples of the step, over ranks.
        total: number of samples of the step, over ranks; None if the loader does not know it.
        samples: number of samples of the step on this rank; None if the loader does not know it.
    """

    batches: list[Any]
    start: int
    total: int | None
    samples: int | None


class TrainLoader:
    """Yields the windows of an epoch in an order that is a function of run seed and epoch.

    An epoch's samples are permuted and cut into steps of ``world * accumulate * batch_size``; a rank takes its
    contiguous slice of each step and cuts it into micro-batches. The last step holds the remaining samples, divided
    evenly among ranks (fewer samples than ranks are dropped).

    Args:
        part: the training part.
        batch_size: samples per micro-batch of one rank.
        seed: the run's seed, which keys the order of samples and the draws of the transforms.
        accumulate: micro-batches per optimizer step.
        transforms: ``(name, transform)`` pairs, applied to each sample in order.
        rank: index of this process.
        world: number of processes.
        workers: number of loader processes.
        collate: makes a batch of a list of samples, None for torch's ``default_collate``.
        drop_last: whether to drop the samples at the end of an epoch that do not fill a whole step.
        pin_memory: copy batches into page-locked memory, for a GPU.
        order: draws the samples of an epoch, None for each sample once.
        roles: names the parts of each batch, None to leave them where they stand.

    Raises:
        UserError: if the part has too few samples for a step.
    """

    def __init__(
        self,
        part: Part,
        *,
        batch_size: int,
        seed: int,
        accumulate: int = 1,
        transforms: Sequence[tuple[str, SampleTransform]] = (),
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        pin_memory: bool = False,
        order: Order | None = None,
        roles: Roles | None = None,
    ) -> None:
        self.epoch = 0
        self.start = 0
        self.sampler = self  # Lightning looks for the sampler's set_epoch
        self._part = part
        self._batch_size = batch_size
        self._rank, self._world = rank, world
        self.samples_per_step = world * accumulate * batch_size
        self._order = order or Order(length_of(part))
        self._accumulate, self._length = accumulate, self._order.count
        if self._order.groups is None:
            whole, rest = divmod(self._length, self.samples_per_step)
        else:
            whole, rest = divmod(len(self._order.groups.sizes), world * accumulate)
            self.samples_per_step = self._length // max(whole, 1)
        self._steps = whole + (rest >= world and not drop_last)
        if self._steps == 0:
            what = "training samples" if self._order.groups is None else "samples, grouped by length,"
            raise UserError(
                f"Data(batch_size={batch_size}): {self._length} {what} do not fill a step of"
                f" {self.samples_per_step}; lower batch_size or accumulation, or leave drop_last out"
            )
        self._stream = Stream(seed, "sample order")
        self._roles = roles or None
        self._workers: Workers | None = None
        if transforms or collate is not None or not is_held(part):
            early = self._roles if collate is None else None  # a collate of the user's reads its samples as they are
            samples = Samples(as_dataset(part), seed, transforms, early)
            self._roles = self._roles if early is None else None
            generator = Stream(seed, "loader").torch()
            self._workers = Workers(samples, _Micros(self), collate, workers, generator, pin_memory)

    def __len__(self) -> int:
        return self._steps

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; for the current epoch, keep the position set in :attr:`start`."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    # Lightning resumes within an epoch only if the loader has these; the order is keyed, so there is no state to keep.
    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: the run's own counters give the position to resume from."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore the state; see :meth:`state_dict`."""

    def permutation(self) -> Tensor:
        """Return the order of the samples in the current epoch."""
        return self._order(self._stream, self.epoch)[0]

    def shares(self, cuts: list[int] | None = None) -> Iterator[tuple[list[int], int, int]]:
        """Yield ``(cuts, start, total)`` per step: what this rank takes of the epoch's order.

        ``cuts`` are the positions in the order at which its micro-batches begin and end, ``start`` is its first
        sample's position in the step, and ``total`` the step's number of samples over ranks.

        Args:
            cuts: where the order is cut into micro-batches, None for equal sizes.
        """
        size, rank, world = self._batch_size, self._rank, self._world
        for step in range(self.start, self._steps):
            if cuts is not None:
                first = step * world * self._accumulate
                each = min(self._accumulate, (len(cuts) - 1 - first) // world)
                own = cuts[first + rank * each : first + (rank + 1) * each + 1]
                yield own, own[0] - cuts[first], cuts[first + world * each] - cuts[first]
                continue
            base = step * self.samples_per_step
            total = min(self.samples_per_step, self._length - base)
            low, high = total * rank // world, total * (rank + 1) // world
            yield [*range(base + low, base + high, size), base + high], low, total

    def sample_at(self, step: int, position: int) -> int:
        """Return the index in the part of a sample, given its step in the current epoch and its position over ranks."""
        order, cuts = self._order(self._stream, self.epoch)
        base = step * self.samples_per_step if cuts is None else cuts[step * self._world * self._accumulate]
        return int(order[base + position])

    def untransformed(self, count: int) -> list[Any]:
        """Return the first samples of the next step, at most ``count``, without the plugins' transforms."""
        order, cuts = self._order(self._stream, self.epoch)
        own, _, _ = next(self.shares(cuts))
        samples = Samples(as_dataset(self._part), self._stream.seed, (), self._roles)
        return [samples[self.epoch, index] for index in order[own[0] : min(own[0] + count, own[-1])].tolist()]

    def __iter__(self) -> Iterator[Window]:
        order, cuts = self._order(self._stream, self.epoch)
        if self._workers is not None:
            self._workers.begin()
            for own, start, total in self.shares(cuts):
                batches = [self._named(self._workers.next()) for _ in own[1:]]
                yield Window(batches, start, total, own[-1] - own[0])
        elif isinstance(self._part, Columns) or self._roles is not None:
            take = self._part.take if isinstance(self._part, Columns) else self._take
            for own, start, total in self.shares(cuts):
                batches = [self._named(take(order[a:b])) for a, b in itertools.pairwise(own)]
                yield Window(batches, start, total, own[-1] - own[0])
        else:
            tensors = self._part
            for own, start, total in self.shares(cuts):
                parts = [order[a:b] for a, b in itertools.pairwise(own)]
                # without a variable, which would keep this batch alive while the next is made
                yield Window(
                    [tuple([t.index_select(0, part) for t in tensors]) for part in parts],  # type: ignore[union-attr]
                    start,
                    total,
                    own[-1] - own[0],
                )

    @contextmanager
    def aside(self) -> Iterator[Iterator[Any]]:
        """Return a context with an iterator of the epoch's micro-batches."""
        yield (batch for window in self for batch in window.batches)

    def _take(self, indices: Tensor) -> Any:
        return tuple([t.index_select(0, indices) for t in self._part])  # type: ignore[union-attr]

    def _named(self, batch: Any) -> Any:
        return batch if self._roles is None else self._roles(batch)

    @property
    def exit_code(self) -> int | None:
        """The exit code of a worker that failed, None if none did."""
        return None if self._workers is None else self._workers.exit_code

    def close(self) -> None:
        """Stop the workers; they start again when the loader is next used."""
        if self._workers is not None:
            self._workers.end()


class _Micros:
    """Batch sampler: yields the ``(epoch, index)`` pairs of each micro-batch."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        loader = self._loader
        epoch, (drawn, cuts) = loader.epoch, loader._order(loader._stream, loader.epoch)
        order = drawn.tolist()
        for own, _, _ in loader.shares(cuts):
            for a, b in itertools.pairwise(own):
                yield [(epoch, index) for index in order[a:b]]
