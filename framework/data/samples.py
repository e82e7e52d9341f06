"""Samples with the plugins' transforms, drawn for by epoch and sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from framework.data.parts import Columns
from framework.data.roles import Roles
from framework.errors import UserError, note
from framework.ops.generators import seed_generators
from framework.ops.keyed import Stream

SampleTransform = Callable[[Any, np.random.Generator], Any]


class Samples(Dataset[Any]):
    """A data set that applies the plugins' transforms to each sample, with draws keyed by epoch and sample.

    The user's data set may draw from the global generators of torch, NumPy and Python: these are seeded per sample as
    well, so that samples are the same for any number of workers.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        seed: int,
        transforms: Sequence[tuple[str, SampleTransform]],
        roles: Roles | None = None,
    ) -> None:
        self._dataset, self._roles = dataset, roles
        self._plain = isinstance(dataset, (torch.utils.data.TensorDataset, Columns))
        self._own = Stream(seed, "data set")
        self._transforms = [(name, Stream(seed, name), transform) for name, transform in transforms]

    def __getitem__(self, where: tuple[int, int]) -> Any:
        epoch, index = where
        if not self._plain:
            seed_generators(self._own.key(epoch, index))
        sample = self._dataset[index]
        if self._roles is not None:
            sample = self._roles(sample)
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
