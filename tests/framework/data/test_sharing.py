"""A loader shared among ranks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from framework.data.ready import WindowLoader
from framework.data.sharing import gives_ranks_their_own, shared, twin
from framework.ops.keyed import Stream


class Counted(torch.utils.data.Dataset[int]):
    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> int:
        self.read.append(index)
        return index


class Flow(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(22))


@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("samples", [Counted, Flow])
def test_turns(samples: Any, rest: bool) -> None:
    loaders = [DataLoader(samples(), batch_size=4) for _ in range(4)]
    parts = [
        [int(one) for batch in shared(loader, rank, 4, rest=rest) for one in batch]
        for rank, loader in enumerate(loaders)
    ]
    assert sorted([*itertools.chain(*parts)]) == list(range(22 if rest else 16))
    if samples is Counted:
        assert loaders[1].dataset.read == parts[1]  # only its own are loaded
        assert [len(shared(one, rank, 4, rest=rest)) for rank, one in enumerate(loaders)] == [1 + rest, 1 + rest, 1, 1]


def test_one_order_for_all_ranks_and_numbers_of_workers() -> None:
    orders = []
    for world, workers in ((1, 0), (1, 2), (2, 0)):
        seen = []
        loaders = [
            WindowLoader(
                DataLoader(range(16), batch_size=2, shuffle=True, num_workers=workers),
                accumulate=2 // world,
                stream=Stream(0, "loader"),
                rank=rank,
                world=world,
            )
            for rank in range(world)
        ]
        for windows in zip(*loaders, strict=True):
            seen += [int(one) for window in windows for batch in window.batches for one in batch]
        orders.append(seen)
    assert orders[0] == orders[1] == orders[2] and sorted(orders[0]) == list(range(16))


def test_twins_have_workers_of_their_own() -> None:
    loader = DataLoader(range(8), num_workers=1, persistent_workers=True)
    first = iter(loader)
    assert next(first) == 0
    assert list(twin(loader)) == list(range(8))
    assert next(first) == 1
    batches = [torch.zeros(1)]
    assert twin(batches) is batches


def test_samplers_that_share_themselves() -> None:
    samples = list(range(8))
    assert gives_ranks_their_own(DataLoader(samples, sampler=DistributedSampler(samples, 2, 0)))
    assert not gives_ranks_their_own(DataLoader(samples)) and not gives_ranks_their_own(samples)
