"""Data divided by their constructors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from framework import Data, UserError

X, Y = torch.arange(40.0)[:, None], torch.arange(40) % 4


def test_parts_are_disjoint_and_stratified() -> None:
    data = Data.split((X, Y), (0.5, 0.25, 0.25), stratify="class", batch_size=5)
    parts = [part[0][:, 0].tolist() for part in (data.train, data.val, data.test)]
    assert sorted([*itertools.chain(*parts)]) == list(range(40)) and data.batch_size == 5
    assert sorted(torch.bincount(data.val[1]).tolist()) == [2, 2, 3, 3]
    again = Data.split((X, Y), (0.5, 0.25, 0.25), stratify="class", batch_size=5)
    other = Data.split((X, Y), (0.5, 0.25, 0.25), stratify="class", batch_size=5, seed=1)
    assert torch.equal(again.train[0], data.train[0]) and not torch.equal(other.train[0], data.train[0])
    by_hand, _ = train_test_split(range(40), test_size=0.2, random_state=3)
    assert Data.split((X, Y), (0.8, 0.2), seed=3).train[0][:, 0].tolist() == by_hand


def test_kinds_of_samples() -> None:
    for samples in (TensorDataset(X, Y), {"x": X, "y": Y}, ({"a": X}, Y)):
        data = Data.split(samples, (0.75, 0.25), stratify=Y)
        assert (data.samples("train"), data.samples("val"), data.samples("test")) == (30, 10, None)
    groups = torch.arange(40) // 4
    grouped = Data.split((X, Y), (0.5, 0.5), groups=groups)
    assert not {int(x) // 4 for x in grouped.train[0]} & {int(x) // 4 for x in grouped.val[0]}
    named = Data.split({"a": X, "b": Y}, (0.5, 0.5), stratify="class", input="a", target="b")
    assert named.samples("val") == 20


def test_folds() -> None:
    folds = Data.folds((X, Y), 4, stratify="class", batch_size=7)
    assert len(folds) == 4 and folds[0].batch_size == 7
    assert sorted(int(one) for data in folds for one in data.val[0]) == list(range(40))
    for data in folds:
        assert data.samples("train") == 30 and not set(data.train[0].tolist()[0]) & set(data.val[0].tolist()[0])
        assert torch.bincount(data.val[1]).max() <= 3


def test_what_cannot_be_divided() -> None:
    with pytest.raises(
        UserError, match=r"Data\.split: needs samples that can be counted and chosen; a DataLoader only yields"
    ):
        Data.split(DataLoader(TensorDataset(X)))
    with pytest.raises(UserError, match="training, validation and test part only"):
        Data.split((X, Y), (0.25, 0.25, 0.25, 0.25))


NUMBERS = torch.arange(40) % 7 + 1


@pytest.mark.parametrize("given", [NUMBERS, NUMBERS.tolist(), NUMBERS.numpy(), NUMBERS.double()])
def test_what_is_given_per_sample_is_divided_with_the_samples(given: Any) -> None:
    for data in (Data.split((X, Y), (0.5, 0.25, 0.25), weights=given), *Data.folds((X, Y), 4, weights=given)):
        own = NUMBERS[data.train[0][:, 0].long()]
        assert torch.equal(torch.as_tensor(data.weights).double(), own.double())
        by_hand = Data(data.train, data.val, weights=own)
        order, same = (one.train_loader(seed=3).permutation() for one in (data, by_hand))
        assert torch.equal(order, same)
    for data in (Data.split((X, Y), lengths=given, tokens=30), *Data.folds((X, Y), 4, lengths=given, tokens=30)):
        for window in data.train_loader(seed=0):
            for x, _ in window.batches:
                assert len(x) * int(NUMBERS[x[:, 0].long()].max()) <= 30


@pytest.mark.parametrize("labels", [Y - 2, Y.tolist(), Y.float(), ["abcd"[one] for one in Y.tolist()], Y > 0])
def test_classes_given_per_sample_are_divided_with_the_samples(labels: Any) -> None:
    kept = torch.arange(40) > 10
    classes = (Y > 0).long() if isinstance(labels, torch.Tensor) and labels.dtype == torch.bool else Y
    samples = TensorDataset(X[kept], Y[kept])
    chosen = labels[kept] if isinstance(labels, torch.Tensor) else [labels[place] for place in kept.nonzero()[:, 0]]
    data = Data.split(samples, (0.8, 0.2), balance=chosen, epoch_samples=50)
    own = classes[torch.stack([x for x, _ in data.train])[:, 0].long()]
    by_hand = Data(data.train, balance=own, epoch_samples=50)
    assert torch.equal(*(one.train_loader(seed=3).permutation() for one in (data, by_hand)))
    assert len(data.balance) == 23


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"weights": torch.ones(24)},
            r"^Data\(weights=...\): must be one number per training sample, \(40,\); received",
        ),
        ({"lengths": [1] * 41}, r"^Data\(lengths=...\): .*\(40,\); received \(41,\)$"),
        ({"balance": [1] * 41}, r"^Data\(balance=...\): must be one class per sample, \(40,\); received \(41,\)$"),
        ({"weights": -NUMBERS}, "finite numbers of 0 or more"),
    ],
)
def test_what_is_given_per_sample_is_for_all_samples(given: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Data.split((X, Y), **given)
    with pytest.raises(UserError, match=words):
        Data.folds((X, Y), 4, **given)


class Endless(IterableDataset[Any]):
    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Any:
        return iter(range(40))


def test_a_stream_cannot_be_divided() -> None:
    for samples in (Endless(), iter([(X, Y)])):
        with pytest.raises(UserError, match=r"Data\.folds: needs samples that can be counted and chosen"):
            Data.folds(samples, 2)
