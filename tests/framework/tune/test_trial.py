"""A trial is the mean of its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from framework import UserError, fit
from framework.checkpoint.folder import RunFolder
from framework.tune import Study, tune

FAST = {"enable_progress_bar": False}


def figures(study: Study) -> dict[int, Any]:
    return {one.number: (one.state.name, one.params, one.value) for one in study.trials}


def test_seeds_and_folds_are_averaged(toy: Path, tmp_path: Path) -> None:
    study = tune(toy, trials=2, seeds=2, folds=2, logs=tmp_path, refit=True)
    first = study.trials[0]
    by_hand = [
        fit(toy, seed=seed, parameters={"fold": fold}, logs=None, trainer=FAST).metrics["val/loss"]
        for seed in (0, 1)
        for fold in (0, 1)
    ]
    assert first.user_attrs["values"] == by_hand
    assert first.value == pytest.approx(sum(by_hand) / 4, rel=1e-12)
    assert "±" in study.summary()
    assert study.refitted is not None
    assert [phase["name"] for phase in _record(study.refitted)["phases"]] == ["retrain"]


def test_a_metric_that_is_never_logged(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metric='val/f1': never logged; known: .*val/accuracy"):
        tune(toy, trials=1, metric="val/f1", mode="max", logs=tmp_path)


def _record(path: Path) -> dict[str, Any]:

    return RunFolder(path).read()
