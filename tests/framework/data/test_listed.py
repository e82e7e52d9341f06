"""Lists of batches that are given as samples are told where it is sure, and lists of samples always taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from framework import Data, Recipe, UserError, fit

X, Y = torch.randn(96, 20), torch.arange(96) % 3
BATCHES = list(zip(X.split(32), Y.split(32), strict=True))
SHORT = list(zip(X.split(40), Y.split(40), strict=True))
NAMED = [{"x": x, "y": y} for x, y in BATCHES]
OPTIONS = {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def run(model: nn.Module, loss: Any, *parts: Any, **options: Any) -> Any:
    return fit(Recipe(model, Data(*parts, **options), loss, trainer=OPTIONS), logs=None)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (BATCHES, (X, Y)),
        (SHORT, (X, Y)),
        (NAMED, {"x": X, "y": Y}),
        ([list(one) for one in BATCHES], [(X[0], Y[0]), (X[1], Y[1])]),
        (BATCHES, [(X[0], 0), (X[1], 1)]),
        ([(x.numpy(), y.numpy()) for x, y in BATCHES], [(X[0].numpy(), np.int64(0))]),
        (list(DataLoader(TensorDataset(X, Y), 32)), (X, Y)),
    ],
)
def test_beside_samples_batches_are_told(train: Any, val: Any) -> None:
    words = r"each item of the list holds \d+ samples as Data\(.*shapes \(\d+, 20\) and \(\d+,\) for \(20,\) and \(\)"
    for parts, name in (((train, val), "train"), ((val, train), "val"), ((None, val, train), "test")):
        with pytest.raises(
            UserError, match=rf"^Data\({name}=...\): {words}.*DataLoader\(batches, batch_size=None"
        ) as one:
            Data(*parts)
        assert "\n" not in str(one.value)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (BATCHES, None),  # sequences of 32 places with a class each
        (BATCHES, BATCHES),
        (BATCHES, (torch.zeros(5, 32, 20), torch.zeros(5, 32))),
        ([(x, 1) for x, _ in BATCHES], (X[None], torch.zeros(1))),
        (list(zip(X, Y, strict=True)), (X, Y)),
        ([(torch.zeros(1, 8), torch.zeros(1))] * 4, (torch.zeros(4, 8), torch.zeros(4))),
        ([{"text": "a", "y": 1}], [{"text": "b", "y": 2}]),
        (BATCHES, (X, Y[:, None])),
        (BATCHES, TensorDataset(X, Y)),
    ],
)
def test_what_may_be_samples_is_taken(train: Any, val: Any) -> None:
    assert Data(train, val).samples("train") == len(train)


def test_sequences_with_a_target_for_each_place_train() -> None:
    class Last(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).transpose(1, 2)

    done = run(Last(20, 3), F.cross_entropy, BATCHES, BATCHES, batch_size=2)
    assert done.core.at.index == 2


HINT = r"; if each item of the list is a batch, give DataLoader\(batches, batch_size=None\)"


@pytest.mark.parametrize(
    ("model", "train", "loss", "words"),
    [
        (nn.Linear(20, 3), BATCHES, F.cross_entropy, r"the loss .*Expected target size \[3, 3\], got \[3, 32\]"),
        (nn.Linear(20, 1), [(x, y.float()) for x, y in BATCHES], F.mse_loss, r"\(3, 32, 1\) and the target \(3, 32\)"),
        (nn.Linear(20, 3), NAMED, nn.CrossEntropyLoss(), "Expected target size"),
        (nn.Linear(20, 3), SHORT, F.cross_entropy, r"unequal shapes, \[\d+, 20\] and \[\d+, 20\], .*Data\(collate"),
        (nn.Sequential(nn.Flatten(), nn.Linear(20, 3)), BATCHES, F.cross_entropy, "takes 20 features and got 640"),
        (
            nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()),
            [(X.view(2, 48, 1, 5, 4)[0], Y[:48])] * 2,
            F.cross_entropy,
            r"layer '0' \(BatchNorm2d\) was given .*\(got 5D input\)",
        ),
        (
            nn.Conv2d(1, 3, 4),
            [(X.view(2, 48, 1, 5, 4)[0], Y[:48])] * 2,
            F.cross_entropy,
            r"the network \(Conv2d\) was given .*got input of size: \[2, 48, 1, 5, 4\]",
        ),
    ],
)
def test_where_shapes_do_not_fit_it_is_a_hint(model: Any, train: Any, loss: Any, words: str) -> None:
    with pytest.raises(UserError, match=words + ".*" + HINT) as caught:
        run(model, loss, train)
    assert "\n" not in str(caught.value)


def test_no_hint_for_what_holds_no_batches() -> None:
    with pytest.raises(UserError, match="takes 5 features and got 20") as caught:
        run(nn.Linear(5, 3), F.cross_entropy, list(zip(X, Y, strict=True)))
    assert "list" not in str(caught.value)


def test_the_remedy() -> None:
    given = DataLoader(SHORT, batch_size=None, shuffle=True)
    done = run(nn.Linear(20, 3), F.cross_entropy, given, (X, Y))
    assert done.core.at.index == 3 and done.core.data.lost()
