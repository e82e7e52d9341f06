"""Errors of a run name their cause: the plugin that raised, or a loader worker that died."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from framework import Recipe, fit
from framework.cli import main as cli
from framework.data import Data
from framework.errors import UserError
from framework.plugin import Plugin
from framework.run import evaluate


def test_a_users_mistake_raised_in_a_worker_stays_one_line(recipe: Callable[..., Recipe], data: Data) -> None:
    class Asks(Plugin):
        def transform_sample(self, sample: Any, rng: Any) -> Any:
            raise UserError("sample has no target; give one")

    data.workers = 1
    with pytest.raises(UserError) as raised:
        fit(recipe(plugins=[Asks()], data=data), logs=None)
    assert str(raised.value) == "sample has no target; give one"


def test_the_checkpoint_before_is_kept(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    class Late(Plugin):
        def transform_gradients(self, step: Any) -> None:
            if step.epoch == 1:
                raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fit(recipe(plugins=[Late()], trainer={"max_epochs": 3}), logs=tmp_path)
    (folder,) = tmp_path.glob("*/version_0")
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 7


def test_evaluation_names_them_too(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    class Late(Plugin):
        def on_test_start(self, trainer: Any, pl_module: Any) -> None:
            raise ArithmeticError("late")

    run = fit(recipe(plugins=[Late()]), logs=tmp_path)
    with pytest.raises(ArithmeticError) as raised:
        evaluate.test(run)
    assert "plugin 'late' (" in raised.value.__notes__[0]
    assert raised.value.__notes__[0].endswith("raised in on_test_start: ArithmeticError: late")


# ---- the command line ------------------------------------------------------------------------------------------------


RECIPE = """
import os, signal
import torch
from torch import nn
from framework import Data, Plugin, Recipe

class Bad(Plugin):
    def transform_batch(self, batch, step):
        if step.index == 3:
            self.fail()
        return batch

    def fail(self):
        raise ValueError("of\\nthe plugin's")

class Each(Plugin):
    def transform_sample(self, sample, rng):
        raise KeyError("missing")

def recipe(plugin: str = "bad", workers: int = 0) -> Recipe:
    x, y = torch.randn(24, 3), torch.randn(24, 1)
    return Recipe(
        nn.Linear(3, 1), Data((x, y), batch_size=4, workers=workers), nn.functional.mse_loss,
        plugins=[Bad() if plugin == "bad" else Each()], trainer={"max_epochs": 1, "accelerator": "cpu"},
    )
"""


@pytest.mark.parametrize("flags", [["--plugin", "bad"], ["--plugin", "each"], ["--plugin", "each", "--workers", "1"]])
def test_the_command_line_prints_one_line_and_the_plugins_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    file = tmp_path / "troubled.py"
    file.write_text(RECIPE)
    assert cli.main(["fit", str(file), "--logs", str(tmp_path / "logs"), *flags]) == 1
    first, *rest = capsys.readouterr().err.splitlines()
    if "bad" in flags:
        assert first == (
            "error: plugin 'bad' (troubled.Bad) raised in transform_batch at step 3: ValueError: of the plugin's"
        )
        assert rest[0] == "Traceback (most recent call last):"
        assert next(line for line in rest if line.startswith("  File")).endswith("in transform_batch")
        assert rest[-2:] == ["ValueError: of", "the plugin's"]
    else:
        assert first.startswith("error: plugin 'each' (troubled.Each) raised in transform_sample for training sample ")
        assert first.endswith(": KeyError: 'missing'")
        assert any(line.endswith("in transform_sample") for line in rest)
        assert "Lightning" not in "".join(rest) and "lightning" not in "".join(rest)


# ---- workers that die ------------------------------------------------------------------------------------------------


class Killed(Dataset[Any]):
    """Has one sample that ends its worker as the system does where memory runs out."""

    def __init__(self, part: Any, at: int, number: int = signal.SIGKILL) -> None:
        self._part, self._at, self._number = part, at, number

    def __len__(self) -> int:
        return len(self._part[0])

    def __getitem__(self, index: int) -> Any:
        if index == self._at:
            if not self._number:
                os._exit(3)
            os.kill(os.getpid(), self._number)
        return self._part[0][index], self._part[1][index]


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the loader look after its workers five times a second, not every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, 0])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_worker_that_dies_is_reported_in_one_line(
    recipe: Callable[..., Recipe], data: Data, tmp_path: Path, part: str, number: int
) -> None:
    parts = {"train": data.train, "val": data.val}
    parts[part] = Killed(parts[part], 30, number)
    given = recipe(data=Data(**parts, batch_size=8, workers=2), trainer={"max_epochs": 2})
    with pytest.raises(UserError) as raised:
        fit(given, logs=tmp_path)
    text = str(raised.value)
    ways = {
        signal.SIGKILL: "was killed by SIGKILL; most often memory ran out: use fewer workers or smaller batches",
        signal.SIGSEGV: "was killed by SIGSEGV; run with Data(workers=0) to see which sample or transform causes it",
        0: "exited with code 3; run with Data(workers=0) to see which sample or transform causes it",
    }
    assert text == f"Data(workers=2): a loader worker {ways[number]}; --resume continues the run"
    assert "\n" not in text


@pytest.mark.usefixtures("watchful")
def test_a_worker_that_dies_in_an_evaluation_is_reported(
    recipe: Callable[..., Recipe], data: Data, tmp_path: Path
) -> None:
    run = fit(recipe(data=data), logs=tmp_path)
    run.core.data = Data(data.train, data.val, Killed(data.test, 20), batch_size=8, workers=2)
    with pytest.raises(UserError, match=r"^Data\(workers=2\): a loader worker .* smaller batches$"):
        evaluate.test(run)


def test_other_errors_of_the_loader_stay_what_they_are(recipe: Callable[..., Recipe], data: Data) -> None:
    class Reads(Killed):
        def __getitem__(self, index: int) -> Any:
            raise RuntimeError("cannot read")

    given = recipe(data=Data(Reads(data.train, 0), data.val, batch_size=8, workers=1))
    with pytest.raises(RuntimeError, match="cannot read") as raised:
        fit(given, logs=None)
    assert not isinstance(raised.value, UserError)
