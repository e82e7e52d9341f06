"""Trials are given up early, at the same step on every rank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from framework.checkpoint.folder import RunFolder
from framework.tune import Study, tune

FAST = {"enable_progress_bar": False}


def figures(study: Study) -> dict[int, Any]:
    return {one.number: (one.state.name, one.params, one.value) for one in study.trials}


def test_given_up_early(toy: Path, tmp_path: Path) -> None:
    study = tune(toy, trials=12, prune="asha", parameters={"epochs": 9}, sampler="random", logs=tmp_path)
    early = [one for one in study.trials if one.state.name == "PRUNED"]
    assert early
    assert all(_record(path)["epochs"] < 9 for one in early for path in study.runs(one))
    assert all(_record(path)["epochs"] == 9 for one in study.ranking() for path in study.runs(one))
    assert "given up early" in study.summary()


def test_seeds_are_compared_by_wilcoxon(toy: Path, tmp_path: Path) -> None:
    study = tune(
        toy, trials=6, prune="wilcoxon", seeds=6, search={"optimizer.lr": "1e-5,1e-1"}, sampler="random", logs=tmp_path
    )
    early = [one for one in study.trials if one.state.name == "PRUNED"]
    assert early
    assert all(len(study.runs(one)) < 6 for one in early)


@pytest.mark.slow
def test_two_ranks_are_given_up_at_the_same_step(toy: Path, tmp_path: Path) -> None:
    ranks = ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp_fork", "--trainer.devices", "2"]
    command = [sys.executable, "-W", "ignore", "-m", "framework", "tune", str(toy), "--trials", "10", "--prune", "asha"]
    command += ["--sampler", "random", "--epochs", "9", "--logs", str(tmp_path), *ranks]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "given up early" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "given up at" in line]
    assert lines
    records = [
        _record(path)
        for path in (tmp_path / "searched_recipe/studies/study/trials").glob("*/*/searched_recipe/version_0")
    ]
    assert len(records) == 10
    assert sum(record["epochs"] < 9 for record in records) == len(lines)
    assert all(record["steps"] == 2 * record["epochs"] for record in records)


def _record(path: Path) -> dict[str, Any]:

    return RunFolder(path).read()
