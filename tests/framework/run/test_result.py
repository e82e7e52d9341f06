"""The result of a run: its metrics, and what run.json records of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from framework import Recipe, fit
from framework.plugin import Plugin

MakeRecipe = Callable[..., Recipe]


class Shrink(Plugin):
    factor: float = 0.5

    def transform_gradients(self, step: Any) -> None:
        for group in step.optimizer.param_groups:
            torch._foreach_mul_([p.grad for p in group["params"]], self.factor)


def test_the_best_epoch_is_by_monitor_and_mode(recipe: MakeRecipe) -> None:
    low = fit(recipe(trainer={"max_epochs": 3}), logs=None)
    high = fit(recipe(trainer={"max_epochs": 3}, mode="max"), logs=None)
    history = [entry.metrics["val/loss"] for entry in low.core.recorder.history]
    assert (low.best_epoch, low.metrics["val/loss"]) == (history.index(min(history)), min(history))
    assert (high.best_epoch, high.metrics["val/loss"]) == (history.index(max(history)), max(history))
    assert low.last["val/loss"] == history[-1]


def test_run_json_is_plain_and_whole(recipe: MakeRecipe, tmp_path: Path) -> None:
    run = fit(recipe(plugins=[Shrink(0.25)]), seed=5, logs=tmp_path, settings={"shrink.factor": 0.75})
    told = json.loads((run.folder / "run.json").read_text())
    assert told["status"] == "finished"
    assert told["seed"] == 5
    assert told["settings"] == {"shrink.factor": 0.75}
    assert [(p["name"], p["settings"]["factor"]) for p in told["plugins"]] == [("shrink", 0.75)]
    assert told["metrics"] == run.metrics
    assert told["trainer_options"]["max_epochs"] == 1
    assert told["weights"] == 64 * 12 + 12 + 12 * 10 + 10
    assert {"python", "torch", "pytorch-lightning"} <= set(told["versions"])
    assert told["epochs"] == 1
    assert told["steps"] == 7
