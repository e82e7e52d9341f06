"""Workers share a study, and end it when trial after trial fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from framework import UserError
from framework.tune import Study, tune
from framework.tune.trial import folder_of

FAST = {"enable_progress_bar": False}


def figures(study: Study) -> dict[int, Any]:
    return {one.number: (one.state.name, one.params, one.value) for one in study.trials}


@pytest.mark.slow
def test_two_commands_work_on_one_study(toy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "framework", "tune", str(toy), "--trials", "12", "--sampler", "random"]
    command += ["--logs", str(tmp_path), "--workers", "2"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    texts = [one.communicate()[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], texts
    study = tune(toy, trials=12, sampler="random", logs=tmp_path)
    assert figures(study) == figures(tune(toy, trials=12, sampler="random", logs=tmp_path / "alone"))
    assert folder_of(study.order, 11).is_dir()


def test_ten_failures_in_a_row_end_it(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the last 10 trials failed; .* refuse=\d.* too much"):
        tune(toy, trials=20, search={"refuse": "2,3"}, logs=tmp_path)


def test_a_failing_trial_is_recorded_and_the_study_goes_on(toy: Path, tmp_path: Path) -> None:
    study = tune(toy, trials=6, search={"refuse": "0,2"}, logs=tmp_path)
    failed = [one for one in study.trials if one.state.name == "FAIL"]
    assert 0 < len(failed) < 6
    assert all("refuse=2: too much" in one.user_attrs["error"] for one in failed)
    assert "failed: UserError: refuse=2" in study.summary()
