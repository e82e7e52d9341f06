"""A study searches, goes on where it was interrupted, and hands back the best settings."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from framework import UserError, fit
from framework.recipe.changes import read_changes
from framework.tune import Study, tune
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


def test_more_is_better_for_an_accuracy(toy: Path, tmp_path: Path) -> None:
    study = tune(toy, trials=3, metric="val/accuracy", logs=tmp_path)
    assert study.best is not None
    assert study.best.value == max(one.value or 0 for one in study.trials)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"search": {"width": "4,8"}}, r"'study' in .*studies is another one \(space: "),
        ({"seeds": 2}, r"is another one \(seeds: 1 → 2\)"),
        ({"trainer": {"max_epochs": 1}}, r"is another one \(trainer: "),
        ({"trials": 0}, r"trials=0: must be a whole number >= 1"),
        ({"minutes": -1.0}, r"minutes=-1.0: must be above 0"),
        ({"folds": 1}, r"folds=1: must be a whole number >= 2"),
        ({"prune": "wilcoxon"}, r"prune='wilcoxon': compares trials by their seeds or folds"),
        ({"prune": "often"}, r"prune='often': must be one of 'none', 'median'"),
        ({"sampler": "grid"}, r"sampler='grid': must be one of 'tpe', 'random'"),
        ({"mode": "low"}, r"mode='low': must be 'min' or 'max'"),
        ({"name": "../x"}, r"name='../x': must consist of letters"),
        ({"seed": 1}, r"is another one \(seed: 0 → 1\)"),
        ({"workers": 10**6}, r"workers=1000000: each needs some [\d,]+ MiB"),
    ],
)
def test_bad_input(given: dict[str, Any], words: str, alone: Study, toy: Path) -> None:
    logs = alone.order.folder.parents[2]
    with pytest.raises(UserError, match=words):
        tune(toy, **{"trials": 12, "cocktail": True, "logs": logs, **given})


def test_a_recipe_of_a_script_is_for_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe() -> Any:
        raise AssertionError

    monkeypatch.setattr(recipe, "__module__", "__main__")
    with pytest.raises(UserError, match=r"workers=2: workers cannot import a recipe from a notebook or script"):
        tune(recipe, workers=2)


def test_budgets(toy: Path, tmp_path: Path) -> None:
    assert len(tune(toy, epochs=5, logs=tmp_path / "epochs").ended()) == 3
    assert len(tune(toy, minutes=1e-9, logs=tmp_path / "minutes").ended()) == 0


def test_an_impossible_choice_fails_one_trial_alone(toy: Path, tmp_path: Path) -> None:
    search = {"input_noise.kind": "gaussian,masking", "input_noise.std": "0.01..0.1"}
    found = tune(toy, trials=6, search=search, logs=tmp_path)
    failed = [one for one in found.trials if "error" in one.user_attrs]
    assert 0 < len(failed) < 6
    assert all("kind='masking', rate=None" in one.user_attrs["error"] for one in failed)
    assert found.best is not None


def test_more_folds_than_the_recipe_has(toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "two_folds.py"
    path.write_text(toy.read_text().replace("manual_seed(fold or 0)", "manual_seed([0, 1][fold or 0])"))
    assert tune(path, trials=1, folds=2, logs=tmp_path).best is not None
    with pytest.raises(UserError, match=r"folds=3: the recipe has no fold 2: IndexError: list index out of range"):
        tune(path, trials=1, folds=3, name="more", logs=tmp_path)
    assert not list(tmp_path.glob("*/studies/more"))
