"""Encodings in a network: it begins as it was, bends where numbers need it, and is kept and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from framework import Data, Recipe, UserError, export, fit
from framework.ops.encodings import edges_of, piecewise_linear
from plugins.number_encoding import NumberEncoding
from plugins.optimizer import Optimizer

X = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
Y = ((6 * X[:, :1]).floor() % 2) + X[:, 1:]  # steps along one column, a line along the other


def recipe(encoding: Any = None, model: Any = None, data: Any = None, **trainer: Any) -> Recipe:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 1)) if model is None else model
    data = Data((X[:200], Y[:200]), (X[200:], Y[200:]), batch_size=20) if data is None else data
    plugins = [*([] if encoding is None else [encoding]), Optimizer("AdamW", lr=0.05)]
    return Recipe(model, data, mse_loss, plugins=plugins, trainer={"max_epochs": 40, **QUIET, **trainer})


QUIET = {"enable_progress_bar": False}


def test_a_line_bends() -> None:
    plain = fit(recipe(), logs=None).metrics["val/loss"]
    assert fit(recipe(NumberEncoding(24)), logs=None).metrics["val/loss"] < 0.3 * plain
    assert fit(recipe(NumberEncoding(8, kind="periodic", scale=2.0)), logs=None).metrics["val/loss"] < 0.5 * plain
    only_the_line = fit(recipe(NumberEncoding(24, columns=[1])), logs=None).metrics["val/loss"]
    assert only_the_line == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize("kind", ["piecewise", "periodic"])
def test_it_begins_as_the_network_was(kind: Any) -> None:
    made = recipe(NumberEncoding(6, kind=kind), max_epochs=1)
    expected = made.model(X).detach()
    core = made.make_core(0, made.trainer)
    core.attach_plugins()
    torch.testing.assert_close(core.model(X), expected)
    names = {name for name, _ in core.model.named_parameters()}
    assert {"0.linear.weight", "0.linear.bias", "0.encoded.weight"} <= names


def test_edges_are_those_of_the_training_part_and_are_exported(tmp_path: Path) -> None:
    run = fit(recipe(NumberEncoding(6), max_epochs=2), logs=tmp_path)
    layer: Any = run.core.model.get_submodule("0")
    torch.testing.assert_close(layer.edges, edges_of(X[:200], 6))
    export(run, tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    codes = piecewise_linear(X, layer.edges).flatten(1)
    torch.testing.assert_close(program(X), layer.linear(X) + codes @ layer.encoded.weight.T)


def test_missing_values_are_zeros() -> None:
    run = fit(recipe(NumberEncoding(6), max_epochs=1), logs=None)
    x = X[:1].clone()
    x[0, 0] = float("nan")
    layer: Any = run.core.model.get_submodule("0")
    codes = piecewise_linear(X[:1], layer.edges)
    codes[:, 0] = 0
    expected = layer.linear(torch.tensor([[0.0, float(X[0, 1])]])) + codes.flatten(1) @ layer.encoded.weight.T
    torch.testing.assert_close(run.core.model.eval()(x), expected)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1))


@pytest.mark.parametrize(
    ("encoding", "model", "x", "words"),
    [
        (NumberEncoding(), nn.Conv1d(2, 1, 1), X, r"Conv1d has no nn.Linear, which would take encodings"),
        (NumberEncoding(columns=[2]), nn.Linear(2, 1), X, r"the first nn.Linear takes 2 numbers and has no column 2"),
        (
            NumberEncoding(),
            Images(),
            X.view(150, 1, 2, 2),
            r"4 numbers, and the data's input is .*1, 2, 2\)",
        ),
    ],
)
def test_networks_that_take_no_vector(encoding: Any, model: Any, x: Tensor, words: str) -> None:
    data = Data((x, torch.zeros(len(x), 1)), batch_size=20)
    with pytest.raises(UserError, match=words):
        fit(recipe(encoding, model, data), logs=None)
