"""Loaders: training batches in keyed order, one window per optimizer step, and evaluation batches in order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset

from framework.data.parts import Part, as_dataset, length_of
from framework.data.workers import Workers
from framework.errors import UserError, note
from framework.ops.keyed import Stream

SampleTransform = Callable[[Any, np.random.Generator], Any]


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
    ) -> None:
        self.epoch = 0
        self.start = 0
        self.sampler = self  # Lightning looks for the sampler's set_epoch
        self._part = part
        self._batch_size = batch_size
        self._rank, self._world = rank, world
        self.samples_per_step = world * accumulate * batch_size
        self._length = length_of(part)
        whole, rest = divmod(self._length, self.samples_per_step)
        self._steps = whole + (rest >= world and not drop_last)
        if self._steps == 0:
            raise UserError(
                f"Data(batch_size={batch_size}): {self._length} training samples do not fill a step of"
                f" {self.samples_per_step}; lower batch_size or accumulation, or leave drop_last out"
            )
        self._stream = Stream(seed, "sample order")
        self._workers: Workers | None = None
        if transforms or collate is not None or not isinstance(part, tuple):
            samples = _Samples(as_dataset(part), seed, transforms)
            generator = Stream(seed, "loader").torch()
            self._workers = Workers(samples, _Order(self), collate, workers, generator, pin_memory)

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
        return torch.randperm(self._length, generator=self._stream.torch(self.epoch))

    def shares(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield ``(low, high, start, total)`` per step: this rank's slice of the order, its offset, the step's size."""
        for step in range(self.start, self._steps):
            base = step * self.samples_per_step
            total = min(self.samples_per_step, self._length - base)
            low, high = total * self._rank // self._world, total * (self._rank + 1) // self._world
            yield base + low, base + high, low, total

    def sample_at(self, step: int, position: int) -> int:
        """Return the index in the part of a sample, given its step in the current epoch and its position over ranks."""
        return int(self.permutation()[step * self.samples_per_step + position])

    def untransformed(self, count: int) -> list[Any]:
        """Return the first samples of the next step, at most ``count``, without the plugins' transforms."""
        low, high, _, _ = next(self.shares())
        samples = _Samples(as_dataset(self._part), self._stream.seed, ())
        return [samples[self.epoch, index] for index in self.permutation()[low : min(low + count, high)].tolist()]

    def __iter__(self) -> Iterator[Window]:
        size = self._batch_size
        if self._workers is None:
            tensors, order = self._part, self.permutation()
            for low, high, start, total in self.shares():
                cuts = [order[a : min(a + size, high)] for a in range(low, high, size)]
                # without a variable, which would keep this batch alive while the next is made
                yield Window(
                    [tuple([t.index_select(0, cut) for t in tensors]) for cut in cuts],  # type: ignore[union-attr]
                    start,
                    total,
                    high - low,
                )
        else:
            self._workers.begin()
            for low, high, start, total in self.shares():
                yield Window([self._workers.next() for _ in range(low, high, size)], start, total, high - low)

    @property
    def exit_code(self) -> int | None:
        """The exit code of a worker that failed, None if none did."""
        return None if self._workers is None else self._workers.exit_code

    def close(self) -> None:
        """Stop the workers; they start again when the loader is next used."""
        if self._workers is not None:
            self._workers.end()


class _Order:
    """Batch sampler: yields the ``(epoch, index)`` pairs of each micro-batch."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        loader = self._loader
        epoch, order = loader.epoch, loader.permutation().tolist()
        for low, high, _, _ in loader.shares():
            for a in range(low, high, loader._batch_size):
                yield [(epoch, index) for index in order[a : min(a + loader._batch_size, high)]]


class _Samples(Dataset[Any]):
    """A data set that applies the plugins' transforms to each sample, with draws keyed by epoch and sample.

    The user's data set may draw from the global generators of torch, NumPy and Python: these are seeded per sample as
    well, so that samples are the same for any number of workers.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, transforms: Sequence[tuple[str, SampleTransform]]) -> None:
        self._dataset = dataset
        self._plain = isinstance(dataset, torch.utils.data.TensorDataset)
        self._own = Stream(seed, "data set")
        self._transforms = [(name, Stream(seed, name), transform) for name, transform in transforms]

    def __getitem__(self, where: tuple[int, int]) -> Any:
        epoch, index = where
        if not self._plain:
            key = self._own.key(epoch, index)
            torch.default_generator.manual_seed(key >> 1)
            random.seed(key)
            np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 - the generator that the user's data set may draw from
        sample = self._dataset[index]
        for name, stream, transform in self._transforms:
            try:
                sample = transform(sample, stream.numpy(epoch, index))
            except UserError:
                raise
            except Exception as error:  # noted here: only the text of an error comes back from a worker
                kind = type(getattr(transform, "__self__", transform))
                error.add_note(note(name, kind, "transform_sample", f" for training sample {index}", error))
                raise
        return sample


class EvalLoader:
    """Yields the batches of a part in order, from this rank's contiguous slice of it.

    Args:
        part: the part.
        batch_size: samples per batch.
        rank: index of this process.
        world: number of processes.
        workers: number of loader processes.
        collate: makes a batch of a list of samples, None for torch's ``default_collate``.
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
    ) -> None:
        self._part = part
        self._size = batch_size
        length = length_of(part)
        self._low, self._high = length * rank // world, length * (rank + 1) // world
        self._workers: Workers | None = None
        if collate is not None or not isinstance(part, tuple):
            samples = torch.utils.data.Subset(as_dataset(part), range(self._low, self._high))
            batches = BatchSampler(range(self._high - self._low), self._size, drop_last=False)
            self._workers = Workers(samples, batches, collate, workers, torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return -(-(self._high - self._low) // self._size)

    def __iter__(self) -> Iterator[Any]:
        if self._workers is not None:
            self._workers.begin()
            for _ in range(len(self)):
                yield self._workers.next()
            return
        for low in range(self._low, self._high, self._size):
            yield tuple([t[low : min(low + self._size, self._high)] for t in self._part])  # type: ignore[union-attr]

    @property
    def exit_code(self) -> int | None:
        """The exit code of a worker that failed, None if none did."""
        return None if self._workers is None else self._workers.exit_code

    def close(self) -> None:
        """Stop the workers; they start again when the loader is next used."""
        if self._workers is not None:
            self._workers.end()
