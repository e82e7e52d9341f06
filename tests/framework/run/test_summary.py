from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from framework.data import Data
from framework.engine.core import Core
from framework.recipe.recipe import Recipe
from framework.run import summary
from framework.run.result import PhaseRun, Run
from framework.run.summary import summarize


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a run with known numbers in the working directory, as `digits.py` would leave it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(summary, "_program", lambda name: name)
    folder = tmp_path / "lightning_logs" / "digits" / "version_3"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.ckpt").touch()
    x, y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
    recipe = Recipe(nn.Linear(2, 3), Data((x, y), (x, y), (x, y)), nn.functional.cross_entropy, monitor="val/accuracy")
    return Run(
        status="stopped",
        metrics={
            "val/accuracy": 0.9833,
            "val/loss": 0.084,
            "train/loss": 0.1234,
            "gap/loss": -0.0394,
            "penalty/x": 1.0,
        },
        last={"val/accuracy": 0.98, "val/loss": 0.09, "train/loss": 0.1, "gap/loss": -0.01, "penalty/x": 1.0},
        best_epoch=23,
        epochs=34,
        steps=1234,
        seconds=75.2,
        core=Core(recipe.model, recipe.loss, data=recipe.data),
        recipe=recipe,
        folder=folder,
        name="digits",
        file=Path("recipes/digits.py"),
    )


def test_shows_all_of_a_run(run: Run) -> None:
    assert summarize(run).splitlines() == [
        "digits: stopped early after 34 epochs, best was epoch 24 by val/accuracy",
        "",
        "  metric        best (epoch 24)  last (epoch 34)",
        "  val/accuracy   0.9833           0.9800",
        "  val/loss       0.0840           0.0900",
        "  train/loss     0.1234           0.1000",
        "  gap/loss      -0.0394          -0.0100",
        "",
        "  1,234 steps, 1 min 15 s, 9 parameters",
        "  lightning_logs/digits/version_3",
        "",
        "Next:",
        "  python -m framework test recipes/digits.py",
        "  tensorboard --logdir lightning_logs",
    ]


def test_one_column_where_the_last_epoch_was_the_best(run: Run) -> None:
    run.metrics = run.last
    lines = summarize(run).splitlines()
    assert lines[2:4] == ["  metric        last", "  val/accuracy   0.9800"]


def test_without_validation_there_is_no_best(run: Run) -> None:
    run.best_epoch = None
    run.metrics = run.last = {"train/loss": 0.5}
    lines = summarize(run).splitlines()
    assert lines[0] == "digits: stopped early after 34 epochs"
    assert lines[2:5] == ["  metric      last", "  train/loss   0.5000", ""]


def test_without_any_metric_there_is_no_table(run: Run) -> None:
    run.best_epoch, run.metrics, run.last = None, {}, {}
    assert "metric" not in summarize(run)


def test_a_metric_that_only_one_epoch_has(run: Run) -> None:
    del run.last["val/loss"]
    assert "  val/loss       0.0840                -\n" in summarize(run)


def test_names_logs_that_are_elsewhere(run: Run, tmp_path: Path) -> None:
    elsewhere = tmp_path / "my logs"
    (tmp_path / "lightning_logs").rename(elsewhere)
    run.folder = elsewhere / "digits" / "version_3"
    assert summarize(run).splitlines()[-2:] == [
        "  python -m framework test recipes/digits.py --logs 'my logs'",
        "  tensorboard --logdir 'my logs'",
    ]


@pytest.mark.parametrize("lacks", ["test part", "file", "checkpoint"])
def test_shows_no_command_that_would_fail(run: Run, lacks: str) -> None:
    if lacks == "test part":
        run.recipe = dataclasses.replace(run.recipe, data=dataclasses.replace(run.recipe.data, test=None))
    elif lacks == "file":
        run.file = None
    else:
        assert run.best is not None
        run.best.unlink()
    assert summarize(run).splitlines()[-2:] == ["Next:", "  tensorboard --logdir lightning_logs"]


def test_a_run_that_wrote_nothing(run: Run) -> None:
    run.folder = None
    assert summarize(run).splitlines()[-1] == "  1,234 steps, 1 min 15 s, 9 parameters"


def test_frozen_parameters(run: Run) -> None:
    run.core.model.get_parameter("weight").requires_grad_(False)
    assert "9 parameters (3 trained)" in summarize(run)


def test_phases(run: Run) -> None:
    run.phases = [PhaseRun("retrain", "finished", {}, 24, 900, 12.3)]
    assert "then retrain: finished after 24 epochs, on training and validation part together, 12.3 s" in summarize(run)


@pytest.mark.parametrize("status", ["interrupted", "stopped"])
def test_says_how_far_a_run_got_of_what_was_planned(
    status: str, run: Run, core_of: Callable[..., Core], train: Callable[..., object]
) -> None:
    run.core = core_of()
    train(run.core, max_epochs=2)
    run.status, run.epochs, run.best_epoch = status, 1, None
    end = {"interrupted": "interrupted", "stopped": "stopped early"}[status]
    assert summarize(run).splitlines()[0] == f"digits: {end} after 1 of 2 epochs"


def test_programs_that_the_shell_does_not_find_have_their_path(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "tensorboard"):
        (tmp_path / ".venv" / "bin" / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert summarize(run).splitlines()[-2:] == [
        "  .venv/bin/python -m framework test recipes/digits.py",
        "  .venv/bin/tensorboard --logdir lightning_logs",
    ]
    monkeypatch.setenv("PATH", str(tmp_path / ".venv" / "bin"))
    assert summarize(run).splitlines()[-2:] == [
        "  python -m framework test recipes/digits.py",
        "  tensorboard --logdir lightning_logs",
    ]


def test_fits_a_hundred_columns(run: Run) -> None:
    name = "a_metric_with_a_name_that_says_much_more_than_it_has_to_say_about_what_it_is_that_it_measures"
    run.metrics |= {f"val/{name}": 1e9}
    assert max(map(len, summarize(run).splitlines())) <= 100
