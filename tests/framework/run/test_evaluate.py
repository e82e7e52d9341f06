"""Runs are evaluated from their folders, as they were trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import framework
from framework.errors import UserError

RECIPE = '''
import torch
from sklearn.datasets import load_digits
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from framework import Data, Plugin, Recipe


class Stray(Plugin):
    """Leaves wrong weights in the network when training ends, and noise in training."""

    std: float = 0.1

    def transform_batch(self, batch, step):
        x, y = batch
        return x + self.std * step.normal(self, x), y


def recipe(width: int = 12, test: bool = True) -> Recipe:
    """Train on some digits.

    Args:
        width: hidden units.
        test: have a test part.
    """
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x[:180] / 16, dtype=torch.float32), torch.tensor(y[:180])
    return Recipe(
        nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Dropout(0.5), nn.Linear(width, 10)),
        Data((x[:100], y[:100]), (x[100:141], y[100:141]), (x[141:], y[141:]) if test else None, batch_size=16),
        nn.CrossEntropyLoss(),
        metrics={"accuracy": MulticlassAccuracy(10, average="micro")},
        plugins=[Stray()],
        trainer={"max_epochs": 2, "enable_progress_bar": False, "accelerator": "cpu"},
    )
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def loss_at(run: Any, ckpt: Path) -> float:
    model = run.core.model.eval()
    state = torch.load(ckpt, weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    x, y = run.recipe.data.test
    with torch.no_grad():
        return cross_entropy(model(x), y).item()


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_folder_is_evaluated_with_the_parameters_of_the_run(file: Path, logs: Path, which: str) -> None:
    run = framework.fit(file, parameters={"width": 7}, logs=logs)
    tested = framework.test(file, logs=logs, ckpt=which)
    assert tested["test/loss"] == pytest.approx(loss_at(run, run.folder / "checkpoints" / f"{which}.ckpt"), rel=1e-6)
    assert 0 <= tested["test/accuracy"] <= 1
    told = json.loads((run.folder / "run.json").read_text())
    assert told["test"] == {"ckpt": which, **tested}
    assert told["status"] == "finished"


def test_validation_gives_the_best_metrics_again(file: Path, logs: Path) -> None:
    run = framework.fit(file, logs=logs)
    again = framework.validate(file, logs=logs)
    assert again == pytest.approx({tag: run.metrics[tag] for tag in again}, rel=1e-6)
    assert set(again) == {"val/loss", "val/accuracy"}


def test_predictions_are_the_networks_outputs_in_order(file: Path, logs: Path) -> None:
    run = framework.fit(file, logs=logs)
    predicted = framework.predict(file, logs=logs, ckpt=str(run.last_checkpoint))
    loss_at(run, run.last_checkpoint)
    assert torch.allclose(predicted, run.core.model(run.recipe.data.test[0]), atol=1e-6)


def test_a_run_by_its_folder_and_the_newest_by_default(file: Path, logs: Path) -> None:
    first = framework.fit(file, seed=1, logs=logs)
    second = framework.fit(file, seed=2, logs=logs)
    assert framework.validate(file, run=first.folder)["val/loss"] == pytest.approx(first.metrics["val/loss"], rel=1e-6)
    assert framework.validate(file, logs=logs)["val/loss"] == pytest.approx(second.metrics["val/loss"], rel=1e-6)


def test_settings_and_plugins_of_the_run_are_taken(file: Path, logs: Path) -> None:
    run = framework.fit(file, settings={"stray.std": 0.5}, logs=logs)
    assert run.recipe.plugins[0].std == 0.5
    framework.test(file, logs=logs)
    framework.fit(file, without=["stray"], logs=logs)
    framework.test(file, logs=logs)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"ckpt": "bset"}, "ckpt='bset': no such checkpoint .*this run has: best, last"),
        ({"run": "nowhere"}, "nowhere is not a run's folder"),
        ({"logs": "elsewhere"}, "no run of 'small' in elsewhere"),
        ({"parameters": {"width": 5}}, r"checkpoint does not fit this network: .*model.0.weight"),
        ({"parameters": {"test": False}}, r"no test part: give Data\(test=...\)"),
    ],
)
def test_mistakes(file: Path, logs: Path, order: dict[str, Any], words: str) -> None:
    framework.fit(file, logs=logs)
    with pytest.raises(UserError, match=words) as caught:
        framework.test(file, **{"logs": logs, **order})
    assert "\n" not in str(caught.value)


def test_a_finished_run_takes_no_further_arguments(file: Path) -> None:
    with pytest.raises(UserError, match="takes no further arguments; received ckpt"):
        framework.test(framework.fit(file, logs=None), ckpt="best")
