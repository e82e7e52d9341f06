"""Classes and numbers that are given per sample, and what is said where they are not known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from framework import Data, UserError
from framework.data.labels import labels_of
from framework.data.roles import Roles

X, Y = torch.arange(40.0)[:, None], torch.arange(40) % 4


@pytest.mark.parametrize("given", [Y - 2, Y.numpy(), Y.float(), ["abcd"[one] for one in Y.tolist()]])
def test_classes_of_any_values(given: Any) -> None:
    assert torch.equal(labels_of((X, Y), given, Roles(), "Data(balance"), Y)
    assert labels_of((X, Y - 2), "class", Roles(), "Data(balance").tolist() == (Y - 2).tolist()


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ((X, Y.float()), r"the target holds real numbers \(float32\), not classes"),
        ((X, Y.double()), r"the target holds real numbers \(float64\), not classes"),
        ((X, X), r"the target has shape \(40, 1\), not one class per sample"),
        ((X,), "the data have no target"),
        (TensorDataset(X, Y), "a TensorDataset tells no classes without reading all of its samples"),
    ],
)
def test_why_classes_are_not_known(samples: Any, words: str) -> None:
    for call, who in ((Data.split, "split"), (lambda *a, **k: Data.folds(*a, 4, **k), "folds")):
        start = rf"^Data\.{who}\(stratify='class'\): {words}.*; give Data\.{who}\(stratify=labels\)"
        with pytest.raises(UserError, match=start) as caught:
            call(samples, stratify="class")
        assert "balance" not in str(caught.value)
    with pytest.raises(UserError, match=rf"^Data\(balance='class'\): {words}.*; give Data\(balance=labels\)"):
        Data(samples, balance="class")
    with pytest.raises(UserError, match=r"^Data.split\(stratify='label'\): must be 'class', or the class of each"):
        Data.split(samples, stratify="label")
