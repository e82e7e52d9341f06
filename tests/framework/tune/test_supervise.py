"""Killed workers are replaced, and no trial is lost, counted twice or changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework import UserError
from framework.tune import tune
from tests.kills import compare


@pytest.mark.slow
def test_killed_workers_change_nothing() -> None:
    kills, different = compare(kills=8, workers=3, trials=12, epochs=40, rest=0.7)
    assert kills >= 4
    assert different == []


@pytest.mark.slow
def test_the_error_of_a_worker_ends_the_study(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study 'study': a worker ended with an error, see above"):
        tune(toy, trials=30, workers=2, search={"refuse": "2,3"}, logs=tmp_path)
