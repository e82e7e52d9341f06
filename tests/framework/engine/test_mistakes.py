from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from framework import Data, Recipe, UserError, fit
from framework.engine.mistakes import explain_mistake

OPTIONS = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
X = torch.randn(9, 3)
CLASSES = torch.arange(9) % 3


@pytest.mark.parametrize(
    ("model", "x", "y", "loss", "words"),
    [
        (nn.BatchNorm1d(3), X, X, F.mse_loss, r"step 2: the network \(BatchNorm1d\) cannot train on .*drop_last=True"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 1)), X, X, F.mse_loss, r"layer '1' \(Linear\) takes 5 .* got 4"),
        (nn.Linear(3, 2), X, CLASSES, nn.CrossEntropyLoss(), r"was given the class 2, which the network has no output"),
        (nn.Linear(3, 2), X, CLASSES, F.cross_entropy, "was given the class 2"),
        (nn.Linear(3, 3), X, CLASSES - 1, F.cross_entropy, "was given the class -1"),
        (nn.Linear(3, 3), X.double(), CLASSES, F.cross_entropy, r"of another type than its weights.*float64"),
        (nn.Linear(3, 3), CLASSES[:, None].repeat(1, 3), CLASSES, F.cross_entropy, "of another type than its weights"),
        (nn.Linear(3, 3), X, CLASSES.float(), F.cross_entropy, "a target of the wrong type"),
        (nn.Linear(3, 1), X, CLASSES.float(), nn.BCEWithLogitsLoss(), r"do not fit.*y\[:, None\]"),
        (
            nn.Linear(3, 1),
            X,
            CLASSES.float(),
            F.mse_loss,
            r"shape \(4, 1\) and the target \(4,\).*broadcast to \(4, 4\)",
        ),
        (nn.Conv2d(3, 1, 1), torch.randn(9, 1, 4, 4), CLASSES, F.cross_entropy, "takes 3 channels and got 1"),
        (
            nn.Sequential(nn.Embedding(2, 3), nn.Flatten()),
            CLASSES,
            CLASSES,
            F.cross_entropy,
            "an index that it has no row",
        ),
    ],
)
def test_one_line_names_place_and_remedy(model: Any, x: Any, y: Any, loss: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        fit(Recipe(model, Data((x, y), batch_size=4), loss, trainer=OPTIONS), logs=None)
    assert "\n" not in str(caught.value)


def test_in_evaluation_too() -> None:
    data = Data((X, CLASSES), (X, CLASSES + 3), batch_size=3)
    with pytest.raises(UserError, match=r"^the loss was given the class 3"):
        fit(Recipe(nn.Linear(3, 3), data, F.cross_entropy, trainer=OPTIONS), logs=None)


class Own(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a matter of its own")


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="a matter of its own"):
        fit(Recipe(nn.Sequential(nn.Linear(3, 1), Own()), Data((X, X)), F.mse_loss, trainer=OPTIONS), logs=None)
    assert explain_mistake(nn.Linear(1, 1), KeyError("Target 5 is out of bounds")) is None


LINEAR = functools.partial(nn.Linear, 3, 3)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = LINEAR()

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.layer(left + right)


def both(prediction: Any, target: Any) -> Any:
    return F.cross_entropy(prediction, target)


@pytest.mark.parametrize(
    ("model", "train", "loss", "words"),
    [
        (LINEAR(), {0: X, 1: CLASSES, "y": CLASSES}, both, r"network \(Linear\) was given a dict .*a dict with 0, 1\)"),
        (LINEAR(), {("a", 1): X, 2: X, "y": CLASSES}, both, r"was given a dict .*with \('a', 1\), 2\): name what"),
        (
            nn.Sequential(nn.Flatten(), LINEAR()),
            {0: X, 1: X, "y": CLASSES},
            both,
            "'0' .Flatten. was given a dict",
        ),
        (
            Pair(),
            (X, CLASSES),
            both,
            r"network \(Pair\) was not called .*missing 1 .* 'right'\).*Data\(input={",
        ),
        (nn.Sequential(LINEAR(), Pair()), (X, CLASSES), both, r"layer '1' \(Pair\) was not called .* 'right'"),
        (nn.LSTM(3, 3), (X, CLASSES), both, "the loss was given a tuple in place of a tensor"),
        (LINEAR(), (X, {"a": CLASSES}), both, "the loss was given a dict in place of a tensor"),
        (nn.LSTM(3, 3), (X, X), lambda one, other: F.mse_loss(one, other), "the loss was given a tuple in place of a"),
    ],
)
def test_what_is_no_tensor_is_told(model: Any, train: Any, loss: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        fit(Recipe(model, Data(train, batch_size=4), loss, trainer=OPTIONS), logs=None)
    assert "\n" not in str(caught.value)


def test_attributes_that_the_users_own_code_misses_stay_as_they_are() -> None:
    with pytest.raises(AttributeError, match="no attribute 'size'"):
        fit(Recipe(nn.LSTM(3, 3), Data((X, X)), lambda one, _: one.size().sum(), trainer=OPTIONS), logs=None)
