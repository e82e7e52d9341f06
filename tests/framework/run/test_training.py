"""How training ends: by a plugin, by Ctrl-C, by an error, by an exit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import framework
from framework import Recipe, fit, validate
from framework.plugin import Plugin
from framework.run.result import Interrupted

MakeRecipe = Callable[..., Recipe]


class Ends(Plugin):
    """Records how it was notified of the end; ends training in the way that its setting names."""

    way: str = ""

    def begin_step(self, step: Any) -> None:
        if step.index == 3 and self.way == "ctrl-c":
            os.kill(os.getpid(), signal.SIGINT)
        if step.index == 3 and self.way == "error":
            raise ArithmeticError("of the user's")
        if step.index == 3 and self.way == "exit":
            raise SystemExit(7)

    def should_stop(self, metrics: Any) -> bool:
        return self.way == "stop"

    def finish(self, core: Any) -> None:
        self.finished_ = getattr(self, "finished_", 0) + 1
        with torch.no_grad():
            next(core.model.parameters()).fill_(7.0)


def test_a_run_stopped_by_a_plugin(recipe: MakeRecipe) -> None:
    plugin = Ends("stop")
    run = fit(recipe(plugins=[plugin]), logs=None, trainer={"max_epochs": 5})
    assert (run.status, run.epochs, plugin.finished_) == ("stopped", 1, 1)
    assert next(run.core.model.parameters()).unique().item() == 7.0


def test_ctrl_c_hands_the_run_back(recipe: MakeRecipe, tmp_path: Path) -> None:
    plugin = Ends("ctrl-c")
    with pytest.raises(Interrupted) as caught:
        fit(recipe(plugins=[plugin]), logs=tmp_path)
    run = caught.value.run
    assert (run.status, plugin.finished_) == ("interrupted", 1)
    assert json.loads((run.folder / "run.json").read_text())["status"] == "interrupted"
    assert next(run.core.model.parameters()).unique().item() == 7.0
    saved = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]["model.0.weight"]
    assert saved.unique().numel() > 1, "the last checkpoint holds the weights as training left them"


def test_an_error_is_the_users_own_and_the_folder_says_failed(recipe: MakeRecipe, tmp_path: Path) -> None:
    plugin = Ends("error")
    with pytest.raises(ArithmeticError, match="of the user's"):
        fit(recipe(plugins=[plugin]), logs=tmp_path)
    assert plugin.finished_ == 1
    assert json.loads((tmp_path / "recipe" / "version_0" / "run.json").read_text())["status"] == "failed"


def test_an_exit_of_the_users_own_is_no_ctrl_c(recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        fit(recipe(plugins=[Ends("exit")]), logs=tmp_path)
    assert caught.value.code == 7


def test_a_finished_run_is_evaluated_with_what_it_handed_back(recipe: MakeRecipe) -> None:
    run = fit(recipe(plugins=[Ends()]), logs=None)
    with torch.no_grad():
        x, y = run.recipe.data.test
        expected = torch.nn.functional.cross_entropy(run.core.model(x), y).item()
    assert framework.test(run)["test/loss"] == pytest.approx(expected, rel=1e-6)
    assert set(validate(run)) == {"val/loss", "val/accuracy"}
