from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from framework import UserError
from framework.data.ready import WindowLoader
from framework.ops.keyed import Stream


class Noisy(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        return index + torch.rand(1)


def windows(loader: WindowLoader) -> list[list[list[float]]]:
    return [[batch.flatten().tolist() for batch in window.batches] for window in loader]


def noisy() -> DataLoader[torch.Tensor]:
    return DataLoader(Noisy(), batch_size=2, shuffle=True)


def test_batches_are_grouped_and_the_last_window_is_short() -> None:
    loader = WindowLoader(DataLoader(range(10), batch_size=2), accumulate=2)
    assert len(loader) == 3
    assert windows(loader) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9]]]


def test_an_iteration_that_only_looks_draws_once() -> None:
    torch.manual_seed(0)
    expected = [batch.flatten().tolist() for batch in noisy()]
    torch.manual_seed(0)
    loader = WindowLoader(noisy())
    iter(loader)
    assert [window[0] for window in windows(loader)] == expected


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("done", [1, 3])
def test_an_epoch_goes_on_where_it_was(keyed: bool, done: int) -> None:
    stream = Stream(0, "loader") if keyed else None
    torch.manual_seed(0)
    whole, position = [], {}
    loader = WindowLoader(noisy(), stream=stream)
    for epoch in range(3):
        loader.set_epoch(epoch)
        seen = []
        for index, window in enumerate(loader):
            seen.append(window.batches[0].flatten().tolist())
            if epoch == 1 and index + 1 == done:
                position = loader.position()
        whole.append(seen)
    torch.manual_seed(99)
    other = WindowLoader(noisy(), stream=stream)
    other.epoch, other.start = 1, done
    other.resume(position)
    assert [window[0] for window in windows(other)] == whole[1][done:]
    other.set_epoch(2)
    assert [window[0] for window in windows(other)] == whole[2]


def test_looking_aside_changes_nothing() -> None:
    torch.manual_seed(0)
    expected = windows(WindowLoader(noisy()))
    torch.manual_seed(0)
    loader = WindowLoader(noisy())
    seen = []
    for window in loader:
        with loader.aside() as batches:
            first = next(batches)
        seen.append([window.batches[0].flatten().tolist()])
        assert len(first) == 2
    assert seen == expected


class Stateful:
    """A loader that tells and takes its position, as torchdata's does."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.at < 6:
            self.at += 1
            yield torch.tensor([self.at])
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def test_a_loader_with_a_state_reads_nothing_twice() -> None:
    loader = WindowLoader(Stateful(), accumulate=2)
    iterator = iter(loader)
    next(iterator)
    position = loader.position()
    other = WindowLoader(Stateful(), accumulate=2)
    other.start = 1
    other.resume(position)
    assert windows(other) == [[[3], [4]], [[5], [6]]]


class Short(IterableDataset[int]):
    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


def test_a_stream_that_ends_early_or_at_once() -> None:
    with pytest.raises(UserError, match="ended after 2 batches, but its length is 4"):
        list(WindowLoader(DataLoader(Short(), batch_size=2)))
    with pytest.raises(UserError, match="yielded no batch"):
        list(WindowLoader([]))
