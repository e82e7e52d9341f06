"""An order joins its own changes to the recipe with those of a trial."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from framework import UserError
from framework.tune.order import Order


def test_runs_are_seeds_times_folds(toy: Path) -> None:
    assert Order(toy).runs() == [(0, None)]
    assert Order(toy, seeds=2, folds=2).runs() == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_trial_comes_after_the_order(toy: Path) -> None:
    order = Order(
        toy,
        parameters={"width": 4},
        settings={"input_noise.std": 0.2, "norm_penalty.alpha": 0.1},
        with_=["sam"],
        without=["hidden_noise"],
    )
    chosen = {
        "parameters": {"kind": "relu"},
        "settings": {"norm_penalty.alpha": 0.5},
        "without": ["input_noise", "sam"],
    }
    assert order.overrides(chosen) == {
        "parameters": {"width": 4, "kind": "relu"},
        "trainer": {"enable_progress_bar": False, "enable_model_summary": False},
        "settings": {"norm_penalty.alpha": 0.5},
        "with_": [],
        "without": ["hidden_noise", "input_noise"],
    }


def test_it_can_be_sent_to_a_worker(toy: Path) -> None:
    order = Order(toy, search={"width": "4,8"})
    order.build()
    again = pickle.loads(pickle.dumps(order))
    assert again.build().parameters == order.build().parameters
    assert (again.metric, again.search) == ("val/loss", {"width": "4,8"})


def test_folds_need_a_parameter(tmp_path: Path) -> None:
    path = tmp_path / "bare.py"
    path.write_text(
        "from framework import Recipe\n\n\ndef recipe(folds: int = 3) -> Recipe:\n    raise AssertionError\n"
    )
    with pytest.raises(UserError, match=r"folds=3: the recipe has no parameter 'fold', .* did you mean 'folds'\?"):
        Order(path, folds=3).build()
