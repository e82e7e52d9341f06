"""The mean of several runs' weights, with statistics of its own, validates, loads and tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, Recipe, UserError, export, fit, soup, validate
from framework import test as evaluate
from framework.run.soup import mean_of
from plugins.optimizer import Optimizer
from plugins.weight_average import WeightAverage

FAST = {"enable_progress_bar": False, "max_epochs": 2}


@pytest.fixture(scope="module")
def make(digits: Any) -> Any:
    """Return a recipe function: one start for all seeds, which differ in the order of samples."""
    x, y = digits

    def recipe(lr: float = 0.01, width: int = 12, average: bool = False) -> Recipe:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10))
        parts = (x[:100], y[:100]), (x[100:141], y[100:141]), (x[141:], y[141:])
        plugins = [Optimizer("AdamW", lr=lr), *([WeightAverage(decay=0.9)] if average else [])]
        return Recipe(model, Data(*parts, batch_size=20), cross_entropy, plugins=plugins)

    return recipe


@pytest.fixture(scope="module")
def runs(make: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    logs = tmp_path_factory.mktemp("runs")
    changes: list[dict[str, Any]] = [{}, {"seed": 1}, {"parameters": {"lr": 1e-5}}]
    return [Path(str(fit(make, trainer=FAST, logs=logs, **one).folder)) for one in changes]


def test_the_mean(make: Any, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "soup.safetensors"
    made = soup(make, runs[:2], out=out, trainer=FAST)
    kept, states = load_file(out), []
    for run in runs[:2]:
        export(make, tmp_path / "one.safetensors", run=run)
        states.append(load_file(tmp_path / "one.safetensors"))
    for name in ("0.weight", "1.weight", "3.bias"):
        torch.testing.assert_close(kept[name], (states[0][name] + states[1][name]) / 2)
    torch.testing.assert_close(kept["1.running_mean"], _features(make, kept).mean(0), atol=0.02, rtol=0)
    assert kept["1.num_batches_tracked"].dtype == torch.int64
    assert validate(make, run=runs[0], ckpt=out)["val/loss"] == pytest.approx(made.metrics["val/loss"])
    assert evaluate(make, run=runs[0], ckpt=out)["test/loss"] > 0
    again = fit(make, trainer={**FAST, "max_epochs": 1}, logs=None, weights=out)
    assert again.metrics["val/loss"] < 1.5 * made.metrics["val/loss"]
    assert made.ingredients[runs[0]]["val/loss"] == pytest.approx(validate(make, run=runs[0])["val/loss"])


def _features(make: Any, state: dict[str, Any]) -> Any:
    recipe = make()
    recipe.model.load_state_dict(state)
    return recipe.model[0](recipe.data.train[0]).detach()


def test_greedy_adds_only_what_helps(make: Any, runs: list[Path], tmp_path: Path) -> None:
    made = soup(make, runs, out=tmp_path / "soup.safetensors", greedy=True, trainer=FAST)
    best = min(found["val/loss"] for found in made.ingredients.values())
    assert made.metrics["val/loss"] <= best + 1e-6
    assert runs[2] not in made.used  # hardly trained
    assert made.ingredients.keys() == set(runs)


def test_evaluation_weights_are_taken(make: Any, tmp_path: Path) -> None:
    changes = [{"seed": seed, "parameters": {"average": True}} for seed in (0, 1)]
    folders = [Path(str(fit(make, trainer=FAST, logs=tmp_path, **one).folder)) for one in changes]
    made = soup(make, folders, out=tmp_path / "soup.safetensors", trainer=FAST)
    for folder in folders:
        assert made.ingredients[folder]["val/loss"] == pytest.approx(validate(make, run=folder)["val/loss"], rel=1e-5)


def test_bad_input(make: Any, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "soup.safetensors"
    with pytest.raises(UserError, match=r"soup: 1 run given; give the folders of at least two"):
        soup(make, [runs[0], runs[0]], out=out)
    with pytest.raises(UserError, match=r"out='.*soup.pt': must end with .safetensors"):
        soup(make, runs, out=tmp_path / "soup.pt")
    with pytest.raises(UserError, match=r"nowhere is not a run's folder"):
        soup(make, [runs[0], tmp_path / "nowhere"], out=out)
    other = Path(str(fit(make, trainer=FAST, logs=tmp_path, parameters={"width": 5}).folder))
    with pytest.raises(UserError, match=r"soup: .* is of another network than"):
        soup(make, [runs[0], other], out=out)
    with pytest.raises(UserError, match=r"ckpt='.*nothing.safetensors': cannot be read"):
        evaluate(make, run=runs[0], ckpt=tmp_path / "nothing.safetensors")
    assert not out.exists()


def test_counters_are_those_of_the_first() -> None:
    states = [{"w": torch.tensor([1.0], dtype=torch.bfloat16), "n": torch.tensor(i)} for i in (3, 5)]
    mean = mean_of(states)
    assert (mean["w"].dtype, int(mean["n"])) == (torch.bfloat16, 3)
