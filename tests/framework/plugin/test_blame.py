"""A plugin's error names the plugin and its hook point, and leaves the weights as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from framework import Recipe, fit
from framework.data import Data
from framework.engine.core import Core
from framework.plugin import Plugin
from framework.plugin.blame import name_plugin


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


def test_a_plain_error_names_nobody() -> None:
    with pytest.raises(RuntimeError) as raised:
        nn.Linear(2, 2)(torch.ones(3))
    assert name_plugin(raised.value) is None
