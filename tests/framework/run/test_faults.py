"""A plugin's error names plugin and hook point and leaves the weights as they were; a dead loader worker is told."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from framework import Recipe, fit
from framework.cli import main as cli
from framework.data import Data
from framework.engine.core import Core
from framework.errors import UserError
from framework.plugin import Plugin
from framework.run import evaluate
from framework.run.faults import name_plugin

CoreOf = Callable[..., Core]
Train = Callable[..., pl.Trainer]
Weights = Callable[[Core], Tensor]


class Trouble(Plugin):
    """Raises at one hook point, from step 2 on where there are steps."""

    at: str = ""

    def _reach(self, hook: str, index: int = 2) -> None:
        if self.at == hook and index >= 2:
            raise ArithmeticError("of the\nplugin's")

    def prepare_model(self, model: Any) -> Any:
        self._reach("prepare_model")
        return model

    def attach(self, core: Core) -> None:
        self.core_, self.weights_ = core, list(core.model.parameters())
        core.observe(self, "1")
        self._reach("attach")

    def group_parameters(self, groups: Any) -> Any:
        self._reach("group_parameters")
        return groups

    def make_optimizer(self, groups: Any) -> Any:
        self._reach("make_optimizer")

    def make_scheduler(self, optimizer: Any, total_steps: int) -> Any:
        self._reach("make_scheduler")

    def transform_sample(self, sample: Any, rng: Any) -> Any:
        self._reach("transform_sample")
        return sample

    def begin_step(self, step: Any) -> None:
        self.before_ = [weight.detach().clone() for weight in self.weights_]
        self._reach("begin_step", step.index)

    def transform_batch(self, batch: Any, step: Any) -> Any:
        self._reach("transform_batch", step.index)
        return batch

    def edit_weights(self, step: Any) -> None:
        for weight in step.edits.save(self.weights_):
            weight.add_(1.0)
            self._reach("edit_weights", step.index)

    def transform_activation(self, x: Tensor, layer: str, step: Any) -> Tensor:
        self._reach("transform_activation", step.index)
        return x

    def penalty(self, step: Any) -> None:
        self._reach("penalty", step.index)

    def second_gradient(self, step: Any, again: Any) -> None:
        def edit() -> None:
            torch._foreach_add_(step.edits.save(self.weights_), 0.01)
            self._reach("edit of second_gradient", step.index)

        again(edit)
        self._reach("second_gradient", step.index)

    def weight_penalty(self, step: Any) -> None:
        self._reach("weight_penalty", step.index)

    def weight_penalty_gradient(self, step: Any) -> None:
        self._reach("weight_penalty_gradient", step.index)

    def transform_gradients(self, step: Any) -> None:
        self._reach("transform_gradients", step.index)

    def clip_gradients(self, step: Any) -> bool:
        self._reach("clip_gradients", step.index)
        return False

    def after_update(self, step: Any) -> None:
        self.before_ = [weight.detach().clone() for weight in self.weights_]
        self._reach("after_update", step.index)

    def evaluation_weights(self, core: Core) -> Any:
        @contextlib.contextmanager
        def swapped() -> Iterator[None]:
            with core.edits.nested():
                with torch.inference_mode(False), torch.no_grad():
                    torch._foreach_zero_(core.edits.save(self.weights_))
                yield

        self._reach("evaluation_weights")
        return swapped()

    def should_stop(self, metrics: Any) -> bool:
        self._reach("should_stop")
        return False

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._reach("on_validation_batch_end")

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._reach("on_train_batch_end", self.core_.at.index - 1)


WITHIN = (
    "begin_step",
    "transform_batch",
    "edit_weights",
    "transform_activation",
    "penalty",
    "second_gradient",
    "edit of second_gradient",
    "weight_penalty_gradient",
    "transform_gradients",
    "clip_gradients",
    "after_update",
)
AROUND = (
    "make_optimizer",
    "make_scheduler",
    "on_train_batch_end",
    "evaluation_weights",
    "on_validation_batch_end",
    "should_stop",
)


@pytest.mark.parametrize("hook", [*WITHIN, *AROUND])
def test_plugin_and_hook_point_are_named_and_the_weights_put_back(recipe: Callable[..., Recipe], hook: str) -> None:
    trouble = Trouble(hook)
    given = recipe(plugins=[trouble])
    with pytest.raises(ArithmeticError, match="of the\nplugin's") as raised:
        fit(given, logs=None)
    where = f"{hook.rpartition(' ')[2]}{' at step 2' if hook in WITHIN else ''}"
    kind = f"{Trouble.__module__}.Trouble"
    assert raised.value.__notes__ == [f"plugin 'trouble' ({kind}) raised in {where}: ArithmeticError: of the plugin's"]
    core = trouble.core_
    assert not core.edits.open and not core.observers.live and core.at.again == 0
    if "before_" in vars(trouble):
        assert all(torch.equal(a, b) for a, b in zip(trouble.before_, core.model.parameters(), strict=True))


@pytest.mark.parametrize("hook", ["prepare_model", "attach", "group_parameters", "weight_penalty", "finish"])
def test_hook_points_before_and_after_are_found_in_the_traceback(
    recipe: Callable[..., Recipe], tmp_path: Path, hook: str
) -> None:
    class Late(Trouble):
        def finish(self, core: Core) -> None:
            self._reach("finish")

    with pytest.raises(ArithmeticError) as raised:
        fit(recipe(plugins=[Late(hook)]), logs=tmp_path)
    assert f"raised in {hook}" in (name_plugin(raised.value) or "")


@pytest.mark.parametrize("workers", [0, 2])
def test_transform_sample_is_named_from_loader_workers_too(
    recipe: Callable[..., Recipe], data: Data, workers: int
) -> None:
    trouble = Trouble("transform_sample")
    data.workers = workers
    with pytest.raises(ArithmeticError) as raised:
        fit(recipe(plugins=[trouble], data=data), logs=None)
    told = name_plugin(raised.value)
    first = int(data.train_loader(seed=0).permutation()[0])
    assert told is not None
    assert "plugin 'trouble' (" in told
    assert told.endswith(f"raised in transform_sample for training sample {first}: ArithmeticError: of the plugin's")


def test_a_users_mistake_told_in_a_worker_stays_one_line(recipe: Callable[..., Recipe], data: Data) -> None:
    class Asks(Plugin):
        def transform_sample(self, sample: Any, rng: Any) -> Any:
            raise UserError("sample has no target; give one")

    data.workers = 1
    with pytest.raises(UserError) as raised:
        fit(recipe(plugins=[Asks()], data=data), logs=None)
    assert str(raised.value) == "sample has no target; give one"


def test_what_a_plugin_has_the_network_do_is_not_its_fault(recipe: Callable[..., Recipe]) -> None:
    class Breaks(Core):
        def compute_loss(self, batch: Any) -> Tensor:
            if self.at.again and self.at.index == 2:
                raise ArithmeticError("of the network's")
            return cross_entropy(self(batch[0]), batch[1])

    with pytest.raises(ArithmeticError, match="of the network's") as raised:
        fit(recipe(plugins=[Trouble()], core=Breaks), logs=None)
    assert name_plugin(raised.value) is None
    assert not hasattr(raised.value, "__notes__")


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
def test_a_worker_that_dies_is_told_in_one_line(
    recipe: Callable[..., Recipe], data: Data, tmp_path: Path, part: str, number: int
) -> None:
    parts = {"train": data.train, "val": data.val}
    parts[part] = Killed(parts[part], 30, number)
    given = recipe(data=Data(**parts, batch_size=8, workers=2), trainer={"max_epochs": 2})
    with pytest.raises(UserError) as raised:
        fit(given, logs=tmp_path)
    text = str(raised.value)
    ways = {
        signal.SIGKILL: "was ended by SIGKILL; most often since memory ran out: use fewer workers, or smaller batches",
        signal.SIGSEGV: "was ended by SIGSEGV; Data(workers=0) shows what of the data set or its transforms ends it",
        0: "exited with code 3; Data(workers=0) shows what of the data set or its transforms ends it",
    }
    assert text == f"Data(workers=2): a loader worker {ways[number]}; --resume goes on with the run"
    assert "\n" not in text


@pytest.mark.usefixtures("watchful")
def test_a_worker_that_dies_in_an_evaluation_is_told(recipe: Callable[..., Recipe], data: Data, tmp_path: Path) -> None:
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


def test_a_plain_error_names_nobody() -> None:
    with pytest.raises(RuntimeError) as raised:
        nn.Linear(2, 2)(torch.ones(3))
    assert name_plugin(raised.value) is None
