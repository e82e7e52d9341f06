"""A study searches, goes on where it was interrupted, and hands back the best settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from framework import UserError, fit
from framework.recipe.changes import read_changes
from framework.tune import Study, tune
from framework.tune.trial import folder_of
from tests.children import at_call, in_child

FAST = {"enable_progress_bar": False}


def figures(study: Study) -> dict[int, Any]:
    return {one.number: (one.state.name, one.params, one.value) for one in study.trials}


@pytest.fixture(scope="module")
def alone(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return a study of eleven trials, of which the last is the first that the sampler chose."""
    return tune(toy, trials=11, cocktail=True, logs=tmp_path_factory.mktemp("alone"))


def test_the_first_trial_is_the_recipe_and_the_best_settings_give_its_figure(alone: Study, toy: Path) -> None:
    first, best = alone.trials[0], alone.best
    assert first.value == fit(toy, logs=None, trainer=FAST).metrics["val/loss"]
    assert best is not None
    assert best.value == min(one.value or 0 for one in alone.trials)
    again = fit(toy, logs=None, **{"trainer": FAST, **read_changes(alone.settings_file)})
    assert again.metrics["val/loss"] == best.value
    tested = alone.tested()
    assert set(tested) == {"test/loss", "test/accuracy"}
    assert f"  {best.number}  " in alone.summary()
    assert "--settings" in alone.summary()


def test_the_same_call_goes_on_and_more_trials_extend(alone: Study, toy: Path, tmp_path: Path) -> None:
    def call(trials: int) -> Study:
        return tune(toy, trials=trials, cocktail=True, logs=tmp_path)

    for trials in (4, 4, 11):
        assert figures(call(trials)) == {n: one for n, one in figures(alone).items() if n < trials}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("where", ["suggest", "save", "tell"])
def test_killed_anywhere_it_goes_on(where: str, times: int, alone: Study, toy: Path, tmp_path: Path) -> None:
    from optuna.study import Study as Told

    from framework.checkpoint.file import CheckpointFiles
    from framework.tune.space import Space

    owner, name, call = {
        "suggest": (Space, "suggest", 2 + times),
        "save": (CheckpointFiles, "save_checkpoint", 5 + times),
        "tell": (Told, "tell", 1 + times),
    }[where]

    def killed() -> None:
        at_call(owner, name, call, lambda: os.kill(os.getpid(), signal.SIGKILL), after=where == "suggest")
        tune(toy, trials=5, cocktail=True, logs=tmp_path)

    assert in_child(killed) == -signal.SIGKILL
    study = tune(toy, trials=5, cocktail=True, logs=tmp_path)
    assert figures(study) == {number: one for number, one in figures(alone).items() if number < 5}


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


def test_a_failing_trial_is_recorded_and_the_study_goes_on(toy: Path, tmp_path: Path) -> None:
    study = tune(toy, trials=6, search={"refuse": "0,2"}, logs=tmp_path)
    failed = [one for one in study.trials if one.state.name == "FAIL"]
    assert 0 < len(failed) < 6
    assert all("refuse=2: too much" in one.user_attrs["error"] for one in failed)
    assert "failed: UserError: refuse=2" in study.summary()


def test_ten_failures_in_a_row_end_it(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the last 10 trials failed; .* refuse=\d.* too much"):
        tune(toy, trials=20, search={"refuse": "2,3"}, logs=tmp_path)


def test_a_metric_that_is_never_logged(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metric='val/f1': never logged \(logged are: .*val/accuracy"):
        tune(toy, trials=12, metric="val/f1", mode="max", logs=tmp_path)


def test_more_is_better_for_an_accuracy(toy: Path, tmp_path: Path) -> None:
    study = tune(toy, trials=3, metric="val/accuracy", logs=tmp_path)
    assert study.best is not None
    assert study.best.value == max(one.value or 0 for one in study.trials)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"search": {"width": "4,8"}}, r"the study 'study' in .*journal.log is another one \(space: "),
        ({"seeds": 2}, r"is another one \(seeds: 1 → 2\)"),
        ({"trainer": {"max_epochs": 1}}, r"is another one \(trainer: "),
        ({"trials": 0}, r"trials=0: must be a whole number >= 1"),
        ({"minutes": -1.0}, r"minutes=-1.0: must be above 0"),
        ({"folds": 1}, r"folds=1: must be a whole number >= 2"),
        ({"prune": "wilcoxon"}, r"prune='wilcoxon': compares trials by their seeds or folds"),
        ({"workers": 10**6}, r"workers=1000000: each needs some [\d,]+ MiB"),
    ],
)
def test_bad_input(given: dict[str, Any], words: str, alone: Study, toy: Path) -> None:
    logs = alone.order.folder.parents[2]
    with pytest.raises(UserError, match=words):
        tune(toy, **{"trials": 12, "cocktail": True, "logs": logs, **given})


def test_budgets(toy: Path, tmp_path: Path) -> None:
    assert len(tune(toy, epochs=5, logs=tmp_path / "epochs").ended()) == 3
    assert len(tune(toy, minutes=1e-9, logs=tmp_path / "minutes").ended()) == 0


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
def test_two_commands_work_on_one_study(toy: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "framework", "tune", str(toy), "--trials", "12", "--sampler", "random"]
    command += ["--logs", str(tmp_path), "--workers", "2"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    texts = [one.communicate()[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], texts
    study = tune(toy, trials=12, sampler="random", logs=tmp_path)
    assert figures(study) == figures(tune(toy, trials=12, sampler="random", logs=tmp_path / "alone"))
    assert folder_of(study.order, 11).is_dir()


def _record(path: Path) -> dict[str, Any]:
    from framework.checkpoint.folder import RunFolder

    return RunFolder(path).read()


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
    records = [_record(path) for path in (tmp_path / "toy/studies/study/trials").glob("*/*/toy/version_0")]
    assert len(records) == 10
    assert sum(record["epochs"] < 9 for record in records) == len(lines)
    assert all(record["steps"] == 2 * record["epochs"] for record in records)
