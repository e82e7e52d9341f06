"""Data divided by their constructors."""

from __future__ import annotations

import itertools

import pytest
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset

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
    with pytest.raises(UserError, match="need samples; a DataLoader yields batches"):
        Data.split(DataLoader(TensorDataset(X)))
    with pytest.raises(UserError, match="training, validation and test part only"):
        Data.split((X, Y), (0.25, 0.25, 0.25, 0.25))
