"""Ensembles of runs: chosen on validation, tested once, written as one network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from framework import Data, Recipe, UserError, ensemble, fit, predict
from framework import test as evaluate
from plugins.optimizer import Optimizer
from plugins.weight_average import WeightAverage

FAST = {"enable_progress_bar": False, "max_epochs": 40}


@pytest.fixture(scope="module")
def make(digits: Any) -> Any:
    """Return a recipe function whose networks differ by parameters."""
    x, y = digits

    def recipe(width: int = 12, average: bool = False, first: int = 100, loss: Any = cross_entropy) -> Recipe:
        model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        parts = (x[:first], y[:first]), (x[first : first + 40], y[first : first + 40]), (x[141:], y[141:])
        plugins = [Optimizer("AdamW", lr=0.01), *([WeightAverage(decay=0.9)] if average else [])]
        metrics = {"accuracy": MulticlassAccuracy(10, average="micro")}
        return Recipe(model, Data(*parts, batch_size=20, eval_batch_size=25), loss, metrics, plugins=plugins)

    return recipe


@pytest.fixture(scope="module")
def runs(make: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    logs = tmp_path_factory.mktemp("runs")
    changes: list[dict[str, Any]] = [{}, {"seed": 1}, {"parameters": {"average": True}, "seed": 2}]
    return [Path(str(fit(make, trainer=FAST, logs=logs, **one).folder)) for one in changes]


def test_it_is_no_worse_than_its_members_and_exports(make: Any, runs: list[Path], tmp_path: Path, digits: Any) -> None:
    made = ensemble(make, runs, out=tmp_path / "whole.pt2", greedy=True)
    assert list(made.members) == runs
    assert sum(made.weights.values()) == pytest.approx(1)
    assert len(made.weights) > 1
    assert made.metrics["val/loss"] < min(found["val/loss"] for found in made.members.values())
    by_hand = sum(weight * predict(make, run=run).softmax(1) for run, weight in made.weights.items())
    torch.testing.assert_close(made.predictions["test"].softmax(1), by_hand)
    target = digits[1][141:]
    assert made.metrics["test/accuracy"] == pytest.approx((by_hand.argmax(1) == target).float().mean().item())
    program = torch.export.load(tmp_path / "whole.pt2").module()
    torch.testing.assert_close(program(digits[0][141:]), made.predictions["test"])


def test_members_are_measured_as_their_runs_are(make: Any, runs: list[Path]) -> None:
    made = ensemble(make, runs, greedy=True, rounds=1)
    (only,) = made.weights
    assert made.metrics["test/loss"] == pytest.approx(evaluate(make, run=only)["test/loss"], rel=1e-5)


def test_all_runs_of_a_folder(make: Any, runs: list[Path]) -> None:
    made = ensemble(make, [runs[0].parent])
    assert made.weights == dict.fromkeys(sorted(runs), 1 / 3)
    mean = torch.stack([predict(make, run=run).softmax(1) for run in runs]).mean(0)
    torch.testing.assert_close(made.predictions["test"].softmax(1), mean)


def test_bad_input(make: Any, runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ensemble: 1 run that ended given; give the folders of at least two"):
        ensemble(make, runs[:1])
    with pytest.raises(UserError, match=r"ensemble: .*nowhere holds no run that ended"):
        ensemble(make, [tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"out='x.safetensors': must end with .pt2"):
        ensemble(make, runs, out="x.safetensors")
    with pytest.raises(UserError, match=r"rounds=0: must be a whole number >= 1"):
        ensemble(make, runs, rounds=0)
    with pytest.raises(UserError, match=r"outputs='odd': must be one of 'softmax', 'bernoulli', 'normal'"):
        ensemble(make, runs, outputs="odd")  # type: ignore[arg-type]
    other = Path(str(fit(make, trainer=FAST, logs=tmp_path, parameters={"first": 90}).folder))
    with pytest.raises(UserError, match=r"ensemble: .* predicts on other data than .*; give runs of the same data"):
        ensemble(make, [runs[0], other])
