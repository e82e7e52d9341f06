"""An ablation leaves each plugin out, pairs by seed, goes on where it was killed, and reports failures."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from framework import UserError, fit
from framework.checkpoint.file import CheckpointFiles
from framework.recipe.load import build_recipe, load_recipe
from framework.tune import Report, ablate
from framework.tune.ablation import arms
from tests.children import at_call, in_child

FAST = {"enable_progress_bar": False}


@pytest.fixture(scope="module")
def done(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return ablate(toy, seeds=2, logs=tmp_path_factory.mktemp("done"))


def test_arms_leave_out_what_needs_another(toy: Path) -> None:
    recipe = build_recipe(load_recipe(toy))
    assert arms(recipe, alone=False) == {
        "all": [],
        "without input_noise": ["input_noise"],
        "without hidden_noise": ["hidden_noise"],
        "without norm_penalty": ["norm_penalty", "strength_schedule"],
    }
    found = arms(recipe, keep=["hidden_noise"])
    assert found["none"] == ["input_noise", "norm_penalty", "strength_schedule"]
    assert found["norm_penalty alone"] == ["input_noise"]
    assert found["input_noise alone"] == ["norm_penalty", "strength_schedule"]


def test_figures_are_those_of_fit_with_the_same_seeds(done: Report, toy: Path) -> None:
    row = next(row for row in done.rows if row.name == "input_noise beside others")
    for seed in (0, 1):
        for figures, without in ((row.figures, []), (row.others, ["input_noise"])):
            run = fit(toy, seed=seed, without=without, logs=None, trainer=FAST)
            assert figures[seed] == run.metrics["val/loss"]
    assert row.found.mean == pytest.approx(sum(b - a for a, b in zip(row.figures, row.others, strict=True)) / 2)
    assert "in every run: strength_schedule, optimizer" not in done.text()
    assert "in every run: optimizer" in done.text()
    assert "without norm_penalty also without strength_schedule" in done.text()
    assert {path.name for path in done.folder.glob("report.*")} == {"report.md", "report.html", "report.csv"}


def test_killed_and_typed_again_it_goes_on(done: Report, toy: Path, tmp_path: Path) -> None:
    def killed() -> None:
        at_call(CheckpointFiles, "save_checkpoint", 6, lambda: os.kill(os.getpid(), signal.SIGKILL))
        ablate(toy, seeds=2, logs=tmp_path)

    assert in_child(killed) == -signal.SIGKILL
    told: list[str] = []
    again = ablate(toy, seeds=2, logs=tmp_path, tell=told.append)
    assert [(row.name, row.figures, row.others) for row in again.rows] == [
        (row.name, row.figures, row.others) for row in done.rows
    ]
    assert 0 < len(told) < 16
    told.clear()
    ablate(toy, seeds=3, logs=tmp_path, tell=told.append)
    assert len(told) == 8  # one more seed of eight arms


@pytest.mark.slow
def test_workers_make_the_same(done: Report, toy: Path, tmp_path: Path) -> None:
    told: list[str] = []
    both = ablate(toy, seeds=2, logs=tmp_path, workers=2, tell=told.append)
    assert len(told) == len(set(told)) == 16
    assert [row.figures for row in both.rows] == [row.figures for row in done.rows]


def test_a_failing_arm_is_told_and_the_others_go_on(toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    text = toy.read_text().replace("    plugins = [\n", "    plugins = [\n        Needs(),\n")
    odd = """

class Needs(Plugin):
    def attach(self, core):
        self.leans = any(one.name == "hidden_noise" for one in core.plugins)

    def penalty(self, step):
        if not self.leans:
            raise UserError("nothing to lean on")
        return {}


def recipe("""
    path.write_text(
        text.replace("from framework import Data,", "from framework import Data, Plugin,").replace(
            "\n\ndef recipe(", odd, 1
        )
    )
    found = ablate(path, seeds=2, logs=tmp_path, alone=False)
    assert "without hidden_noise, seed 0 failed: UserError: nothing to lean on" in found.text()
    words = r"ablate: no run with all plugins ended; all, seed 0 failed: UserError: nothing to lean on"
    with pytest.raises(UserError, match=words):
        ablate(path, seeds=2, logs=tmp_path / "none", alone=False, without=["hidden_noise"])
    assert {row.name: row.found.n for row in found.rows} == {
        "needs beside others": 2,
        "input_noise beside others": 2,
        "hidden_noise beside others": 0,
        "norm_penalty beside others": 2,
    }


def test_another_ablation_of_that_name_is_refused(done: Report, toy: Path) -> None:
    logs = done.folder.parents[2]
    words = r"'ablation' in .*ablations is another one \(parameters: {} → {'epochs': 1}\); give the same arguments, or"
    with pytest.raises(UserError, match=words):
        ablate(toy, seeds=2, parameters={"epochs": 1}, logs=logs)
    with pytest.raises(UserError, match=r"metric='val/f1': unknown whether more is better"):
        ablate(toy, seeds=2, metric="val/f1", logs=logs)
    with pytest.raises(UserError, match=r"metric='val/f1': never logged"):
        ablate(toy, seeds=2, metric="val/f1", mode="max", logs=logs)
    with pytest.raises(UserError, match=r"mode='low': must be 'min' or 'max'"):
        ablate(toy, seeds=2, mode="low", logs=logs)


def test_bad_input(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"seeds=1: must be a whole number >= 2"):
        ablate(toy, seeds=1, logs=tmp_path)
    with pytest.raises(
        UserError, match=r"keep hidden_nois: the recipe has no such plugin; did you mean 'hidden_noise'"
    ):
        ablate(toy, keep=["hidden_nois"], logs=tmp_path)
    with pytest.raises(UserError, match=r"ablate: the recipe has no plugin to leave out; it has optimizer"):
        ablate(toy, without=["input_noise", "hidden_noise", "strength_schedule", "norm_penalty"], logs=tmp_path)
