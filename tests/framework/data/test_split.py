from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from framework import UserError
from framework.data.split import folds, parts, split

CLASSES = np.repeat([0, 1, 2], [60, 30, 10])
GROUPS = np.arange(100) // 5


def test_parts_are_disjoint_and_complete() -> None:
    parts = split(100, (0.5, 0.3, 0.2), seed=3)
    assert [len(part) for part in parts] == [50, 30, 20]
    assert sorted(np.concatenate(parts)) == list(range(100))


def test_it_is_scikit_learns_split_from_the_last_part_on() -> None:
    rest, test = train_test_split(np.arange(100), test_size=0.2, stratify=CLASSES, random_state=0)
    train, val = train_test_split(rest, test_size=0.25, stratify=CLASSES[rest], random_state=0)
    for ours, theirs in zip(split(100, stratify=CLASSES), (train, val, test), strict=True):
        assert np.array_equal(ours, theirs)


def test_classes_are_shared_out_evenly() -> None:
    for part in split(100, (0.5, 0.5), stratify=CLASSES):
        assert np.bincount(CLASSES[part]).tolist() == [30, 15, 5]
    for _, fold in folds(100, 5, stratify=CLASSES):
        assert np.bincount(CLASSES[fold]).tolist() == [12, 6, 2]


@pytest.mark.parametrize("stratify", [None, GROUPS % 2])
def test_groups_stay_together(stratify: np.ndarray | None) -> None:
    parts = [set(GROUPS[part]) for part in split(100, (0.5, 0.25, 0.25), groups=GROUPS, stratify=stratify)]
    assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    for rest, fold in folds(100, 4, groups=GROUPS, stratify=stratify):
        assert not set(GROUPS[rest]) & set(GROUPS[fold])


def test_each_sample_is_in_one_fold() -> None:
    made = folds(23, 4, seed=1)
    assert sorted(np.concatenate([fold for _, fold in made])) == list(range(23))
    assert all(sorted([*rest, *fold]) == list(range(23)) for rest, fold in made)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: split(10, (0.5, 0.4)), "sum of 1"),
        (lambda: split(10, (1.0,)), "two or more"),
        (lambda: split(4, (0.5, 0.5), stratify=[0, 0, 0, 1]), "cannot be divided"),
        (lambda: split(4, (0.5, 0.5), stratify=[0, 1]), r"one label per sample, \(4,\)"),
        (lambda: folds(10, 1), "2 or more"),
        (lambda: folds(3, 4), "3 samples"),
        (lambda: folds(4, 3, stratify=[0, 0, 1, 1]), "smallest class"),
        (lambda: folds(4, 3, groups=[0, 0, 1, 1]), "2 groups"),
    ],
)
def test_what_cannot_be_divided(call: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("fractions", [0.2, "ab", (0.5, None), torch.ones(99) / 3, (0.5, float("nan"))])
def test_shares_that_are_none(fractions: Any) -> None:
    with pytest.raises(UserError, match=r"^split\(fractions=.{3,85}\): must be two or more numbers above 0"):
        split(10, fractions)


@pytest.mark.parametrize("k", [1, 2.5, "3", None, True])
def test_numbers_of_folds_that_are_none(k: Any) -> None:
    with pytest.raises(UserError, match=r"^folds\(k=.*\): must be a whole number of 2 or more"):
        folds(10, k)


def test_a_fold_of_what_is_not_tested() -> None:
    labels = np.arange(100) % 2
    train, val, test = parts(100, stratify=labels, seed=3)
    assert [len(one) for one in (train, val, test)] == [60, 20, 20]
    found = [parts(100, fold=fold, k=4, stratify=labels, seed=3) for fold in range(4)]
    for one in found:
        assert sorted(np.concatenate(one)) == list(range(100))
        assert list(one[2]) == list(test)
        assert labels[one[1]].mean() == 0.5
    assert sorted(np.concatenate([one[1] for one in found])) == sorted([*train, *val])
    with pytest.raises(UserError, match=r"fold=5: must be a whole number from 0 to 4"):
        parts(100, fold=5)
