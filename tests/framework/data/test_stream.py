"""Lengths that streams and loaders announce, true or not."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from framework import Data, Recipe, UserError, fit
from framework.data.evaluation import ReadyLoader
from framework.data.ready import WindowLoader
from framework.data.stream import announced, is_counted, length_in_words

OPTIONS = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Stream(IterableDataset[Any]):
    """Yields ``real`` samples, and says that it has ``said``."""

    def __init__(self, real: int | None, said: int) -> None:
        self.real, self.said, self.read = real, said, 0

    def __len__(self) -> int:
        return self.said

    def __iter__(self) -> Iterator[Any]:
        for place in itertools.count() if self.real is None else range(self.real):
            self.read += 1
            yield torch.full((3,), float(place)), torch.tensor([1.0])


class Batches:
    """Yields ``real`` batches, and says that it has ``said``."""

    def __init__(self, real: int, said: int) -> None:
        self.real, self.said = real, said

    def __len__(self) -> int:
        return self.said

    def __iter__(self) -> Iterator[Any]:
        return ((torch.full((4, 3), float(place)), torch.ones(4, 1)) for place in range(self.real))


class Indices:
    """A batch sampler whose length is a guess."""

    def __init__(self, said: int) -> None:
        self.said = said

    def __len__(self) -> int:
        return self.said

    def __iter__(self) -> Iterator[list[int]]:
        return iter(torch.arange(32).split(4))  # type: ignore[arg-type]


SAMPLES = TensorDataset(torch.zeros(32, 3), torch.ones(32, 1))


def trained(**parts: Any) -> Any:
    data = Data(**parts, **({"batch_size": 4} if isinstance(parts.get("train"), Stream) else {}))
    return fit(Recipe(nn.Linear(3, 1), data, nn.functional.mse_loss, trainer=OPTIONS), logs=None)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (Stream(32, 12), r"Stream yields 4 batches or more, but its length is 3 \(12 samples\); the epoch ends there"),
        (Stream(None, 12), r"Stream yields 4 batches or more, but its length is 3 \(12 samples\)"),
        (Batches(8, 3), "Batches yields 4 batches or more, but its length is 3; the epoch ends there"),
        (DataLoader(Stream(32, 12), 4), r"Stream yields 4 batches or more, but its length is 3 \(12 samples\)"),
        (DataLoader(SAMPLES, batch_sampler=Indices(3)), "Indices yields 4 batches or more, but its length is 3;"),
    ],
)
def test_a_length_that_is_too_small_is_told_once(train: Any, words: str) -> None:
    with pytest.warns(UserWarning, match=rf"^Data\(train=...\): {words}") as told:
        run = trained(train=train)
    assert len([one for one in told if "or more" in str(one.message)]) == 1
    assert run.core.at.index == 6, "two epochs of three steps, as announced"


def test_a_length_within_a_window_ends_it() -> None:
    loader = WindowLoader(Batches(8, 4), accumulate=3)
    with pytest.warns(UserWarning, match="yields 5 batches or more, but its length is 4"):
        assert [len(window.batches) for window in loader] == [3, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(loader)) == len(loader) == 2


@pytest.mark.parametrize("train", [Stream(12, 12), Stream(11, 11), Batches(3, 3), DataLoader(Stream(12, 12), 4)])
def test_a_true_length_is_read_once(train: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message="Trying to infer the `batch_size`")
        assert trained(train=train).core.at.index == 6
    source = getattr(train, "dataset", train)
    assert getattr(source, "read", 0) <= 24


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (Stream(8, 40), r"Stream ended after 2 batches, but its length is 10 \(40 samples\)"),
        (DataLoader(Stream(8, 40), 4), r"Stream ended after 2 batches, but its length is 10 \(40 samples\)"),
        (Batches(2, 5), "Batches ended after 2 batches, but its length is 5"),
        (DataLoader(SAMPLES, batch_sampler=Indices(9)), "Indices ended after 8 batches, but its length is 9"),
    ],
)
def test_a_length_that_is_too_large_names_who_said_so(train: Any, words: str) -> None:
    with pytest.raises(UserError, match=rf"^Data\(train=...\): {words}; correct its __len__"):
        trained(train=train)


def test_an_evaluation_ends_at_its_length_and_says_so() -> None:
    loader = ReadyLoader(Batches(8, 3), "val")
    with pytest.warns(UserWarning, match=r"^Data\(val=...\): Batches yields 4 batches or more, .*; the evaluation"):
        assert len(list(loader)) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(loader)) == 3 and len(list(ReadyLoader(Batches(3, 3), "val"))) == 3
    with pytest.warns(UserWarning, match=r"^Data\(val=...\): Stream yields 4 batches or more"):
        trained(train=(torch.zeros(4, 3), torch.ones(4, 1)), val=DataLoader(Stream(32, 12), 4))


def test_each_rank_ends_at_its_share() -> None:
    with pytest.warns(UserWarning, match="yields 6 batches or more, but its length is 5"):
        assert len(list(WindowLoader(Batches(8, 5), world=2))) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(WindowLoader(Batches(8, 5), rank=1, world=2))) == 2
        assert len(list(WindowLoader(Batches(5, 5), world=2))) == 2


def test_looking_beyond_leaves_the_generators() -> None:
    class Drawing(Batches):
        def __iter__(self) -> Iterator[Any]:
            return (torch.rand(2) for _ in range(self.real))

    torch.manual_seed(0)
    expected = torch.rand(8)[6:]
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="yields 4 batches or more"):
        assert len(list(WindowLoader(Drawing(8, 3)))) == 3
    assert torch.equal(torch.rand(2), expected)


def test_lengths() -> None:
    assert announced(Batches(1, 7)) == 7 and announced(iter([])) is None and announced(DataLoader(SAMPLES, 5)) == 7
    assert is_counted(DataLoader(SAMPLES, 5, shuffle=True)) and not is_counted(DataLoader(Stream(1, 1)))
    assert not is_counted(DataLoader(SAMPLES, batch_sampler=Indices(3)))  # type: ignore[arg-type]
    assert length_in_words(DataLoader(SAMPLES, 5)) == ("DataLoader", "7")
