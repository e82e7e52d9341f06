from __future__ import annotations

import io
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, WeightedRandomSampler

from framework.data.memory import forgotten, memory_of, recall


class InPlace(Sampler[int]):
    """Shuffles its own order in place, epoch after epoch."""

    def __init__(self, kind: str) -> None:
        self.order: Any = np.arange(10) if kind == "numpy" else list(range(10))
        self.draws: Any = {
            "numpy": np.random.default_rng(0),
            "old": np.random.RandomState(0),
            "python": random.Random(0),
        }[kind]

    def __iter__(self) -> Iterator[int]:
        self.draws.shuffle(self.order)
        return iter([int(one) for one in self.order])

    def __len__(self) -> int:
        return 10


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


LOADERS = {
    "generator of the loader": lambda: DataLoader(range(10), shuffle=True, generator=_generator()),
    "generator of the sampler": lambda: DataLoader(range(10), sampler=RandomSampler(range(10), generator=_generator())),
    "weights": lambda: DataLoader(range(10), sampler=WeightedRandomSampler(range(1, 11), 10, generator=_generator())),
    "numpy": lambda: DataLoader(range(10), sampler=InPlace("numpy")),
    "old": lambda: DataLoader(range(10), sampler=InPlace("old")),
    "python": lambda: DataLoader(range(10), batch_sampler=BatchSampler(InPlace("python"), 3, drop_last=False)),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_later_epoch_is_repeated_in_another_process(kind: str) -> None:
    loader = LOADERS[kind]()  # type: ignore[no-untyped-call]
    list(loader)
    file = io.BytesIO()
    torch.save(memory_of(loader), file)
    epoch = [batch.tolist() for batch in loader]
    file.seek(0)
    other = LOADERS[kind]()  # type: ignore[no-untyped-call]
    recall(other, torch.load(file, weights_only=True))
    assert [batch.tolist() for batch in other] == epoch


class Endless(Sampler[int]):
    def __init__(self) -> None:
        self.stream = iter(range(1000))

    def __iter__(self) -> Iterator[int]:
        return iter([next(self.stream) for _ in range(10)])


def test_what_cannot_be_kept_is_named() -> None:
    assert forgotten(DataLoader(range(10), sampler=Endless())) == ["Endless.stream"]
    assert forgotten(LOADERS["numpy"]()) == []  # type: ignore[no-untyped-call]
