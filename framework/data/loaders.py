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
        batches: micro-batches, each as collated.
        start: position of the first sample among all samples of the step, over ranks.
        total: number of samples of the step, over ranks.
        samples: number of samples of the step on this rank.
    """

    batches: list[Any]
    start: int
    total: int
    samples: int


class TrainLoader:
    """Hands over the windows of an epoch in an order that is a function of run seed and epoch.

    An epoch's samples are permuted and cut into steps of ``world * accumulate * batch_size``; a rank takes its
    contiguous share of each step and cuts it into micro-batches. The last step holds what remains, shared evenly
    (fewer samples than ranks are left out).
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
                f"Data(batch_size={batch_size}): {self._length} training samples fill no step of"
                f" {self.samples_per_step}"
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
        """Move to the start of an epoch; asked again for the epoch at hand it leaves the start as it is."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    # The order is keyed, so there is no state to keep; Lightning asks for these before it trusts a mid-epoch resume.
    def state_dict(self) -> dict[str, Any]:
        """Return nothing: where to go on is known from the run's own counters."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing; see :meth:`state_dict`."""

    def permutation(self) -> Tensor:
        """Return the order of the epoch's samples."""
        return torch.randperm(self._length, generator=self._stream.torch(self.epoch))

    def shares(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield ``(low, high, start, total)`` of each step: this rank's slice of the order, and the step's size."""
        for step in range(self.start, self._steps):
            base = step * self.samples_per_step
            total = min(self.samples_per_step, self._length - base)
            low, high = total * self._rank // self._world, total * (self._rank + 1) // self._world
            yield base + low, base + high, low, total

    def sample_at(self, step: int, position: int) -> int:
        """Return the index in the part of the sample at a position, over ranks, of a step of the epoch at hand."""
        return int(self.permutation()[step * self.samples_per_step + position])

    def untransformed(self, count: int) -> list[Any]:
        """Return the first samples of the next step, ``count`` at most, as the data set gives them."""
        low, high, _, _ = next(self.shares())
        samples = _Samples(as_dataset(self._part), self._stream.seed, ())
        return [samples[self.epoch, index] for index in self.permutation()[low : min(low + count, high)].tolist()]

    def __iter__(self) -> Iterator[Window]:
        size = self._batch_size
        if self._workers is None:
            tensors, order = self._part, self.permutation()
            for low, high, start, total in self.shares():
                cuts = [order[a : min(a + size, high)] for a in range(low, high, size)]
                # not by a name, which would hold this batch while the next is made
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
        """The exit code of a worker that failed, None for none."""
        return None if self._workers is None else self._workers.exit_code

    def close(self) -> None:
        """End the workers; they start anew where the loader is used again."""
        if self._workers is not None:
            self._workers.end()


class _Order:
    """Tells a ``DataLoader`` which samples make each micro-batch, and of which epoch they are."""

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        loader = self._loader
        epoch, order = loader.epoch, loader.permutation().tolist()
        for low, high, _, _ in loader.shares():
            for a in range(low, high, loader._batch_size):
                yield [(epoch, index) for index in order[a : min(a + loader._batch_size, high)]]


class _Samples(Dataset[Any]):
    """A data set whose samples go through the plugins' transforms with draws keyed by epoch and sample.

    A data set of the user's may draw from the global generators of torch, NumPy and Python: these are keyed as well, so
    that its samples too are the same for any number of workers.
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
            np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 - the generator that a user's data set may draw from
        sample = self._dataset[index]
        for name, stream, transform in self._transforms:
            try:
                sample = transform(sample, stream.numpy(epoch, index))
            except UserError:
                raise
            except Exception as error:  # told here: from a worker its text alone comes back
                kind = type(getattr(transform, "__self__", transform))
                error.add_note(note(name, kind, "transform_sample", f" for training sample {index}", error))
                raise
        return sample


class EvalLoader:
    """Hands over a part in order, this rank's contiguous share of it."""

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
        """The exit code of a worker that failed, None for none."""
        return None if self._workers is None else self._workers.exit_code

    def close(self) -> None:
        """End the workers; they start anew where the loader is used again."""
        if self._workers is not None:
            self._workers.end()
