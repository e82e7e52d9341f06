"""A number that is not finite stops the run within its step, and is traced to where it first occurred."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from framework import Recipe, fit
from framework.data import Data
from framework.engine.core import Core
from framework.errors import NonFiniteError
from framework.ops.finite import finite_weights
from framework.plugin import Plugin

CoreOf = Callable[..., Core]
Train = Callable[..., pl.Trainer]


def poisoned(data: Data, *samples: int, value: float = math.nan) -> Data:
    """Return the data with one entry of some training samples' inputs spoiled."""
    x = data.train[0].clone()
    x[list(samples), 5] = value
    return Data((x, data.train[1]), data.val, batch_size=data.batch_size)


def told(train: Train, core: Core, **options: Any) -> str:
    with pytest.raises(NonFiniteError) as raised:
        train(core, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# ---- where it comes from ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_poisoned_sample_is_named_with_the_first_layer_it_reaches(
    core_of: CoreOf, train: Train, data: Data, accumulate: int
) -> None:
    order = data.train_loader(seed=0).permutation().tolist()
    place = order.index(77)
    core = core_of(data=poisoned(data, 77), accumulate=accumulate)
    text = told(train, core)
    assert text.startswith(
        f"step {place // (16 * accumulate)}: the loss is nan: the input of training sample 77 is not"
    )
    assert "and the first output that is not finite is that of layer '0' (Linear);" in text
    assert core.at.index == place // (16 * accumulate), "no step was made since"
    assert text.endswith("(--on-nonfinite skip)")


def test_a_poisoned_target_is_named(core_of: CoreOf, train: Train, data: Data) -> None:
    y = torch.zeros(100, 10)
    y[31] = torch.inf
    core = core_of(data=Data((data.train[0], y), batch_size=100), loss=nn.functional.mse_loss)
    text = told(train, core)
    assert "step 0: the loss is inf: the target of training sample 31 is not finite;" in text


class Overflows(nn.Module):
    """Divides by zero from its third forward on, in its own arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 12)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x) / (0.0 if self.calls > 2 else 1.0)


@pytest.mark.parametrize("compiled", [False, {"backend": "eager"}])
def test_the_first_layer_is_the_first_in_the_order_of_execution(core_of: CoreOf, train: Train, compiled: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(12, 10)
            self.body = nn.ModuleDict({"wrong": Overflows(), "after": nn.ReLU()})
            self.first = nn.Linear(64, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body["after"](self.body["wrong"](self.first(x))))

    text = told(train, core_of(model=Net(), compile=compiled))
    assert "step 2: the loss is nan" in text or "step 2: the loss is inf" in text
    assert "the first value that is not finite is the output of layer 'body.wrong' (Overflows);" in text


def test_a_tuple_of_a_recurrent_layer_is_looked_into(core_of: CoreOf, train: Train, mlp: Any) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.RNN(8, 12, nonlinearity="relu"), nn.Linear(12, 10)
            nn.init.constant_(self.rnn.weight_hh_l0, 1e30)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x.view(-1, 8, 8).transpose(0, 1))[0][-1])

    assert "is the output of layer 'rnn' (RNN);" in told(train, core_of(model=Recurrent()))


def test_a_loss_that_spoils_finite_outputs_is_reported(core_of: CoreOf, train: Train) -> None:
    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(prediction, target) * math.inf

    assert "the output of every layer is finite, but the loss computed from them is not;" in told(
        train, core_of(loss=loss)
    )


def test_draws_that_are_not_keyed_are_reported(core_of: CoreOf, train: Train) -> None:
    class Once(Core):
        def compute_loss(self, batch: Any) -> Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            return cross_entropy(self(batch[0]), batch[1]) * (math.nan if self.calls == 2 else 1.0)

    assert "step 1: the loss is nan: a second evaluation is finite" in told(train, core_of(kind=Once))


def test_a_network_that_raises_on_such_numbers_hides_nothing(core_of: CoreOf, train: Train, data: Data) -> None:
    class Refuses(Core):
        def compute_loss(self, batch: Any) -> Tensor:
            if self.at.again:
                raise ArithmeticError("of the user's")
            return cross_entropy(self(batch[0]), batch[1])

    assert "the input of training sample 3 is not finite;" in told(train, core_of(kind=Refuses, data=poisoned(data, 3)))


# ---- plugins ---------------------------------------------------------------------------------------------------------


class Root(Plugin):
    """A penalty that is no number at step 2."""

    def penalty(self, step: Any) -> Any:
        return {"good": torch.tensor(1.0), "root": torch.tensor(-math.inf if step.index == 2 else 0.0)}


class Spoils(Plugin):
    """Spoils what it is given at one hook point, from step 1 on."""

    where: str = "batch"

    def attach(self, core: Core) -> None:
        core.observe(self, "1")
        self.weights_ = list(core.model.parameters())

    def transform_batch(self, batch: Any, step: Any) -> Any:
        return (batch[0] / (step.index < 1 or self.where != "batch"), *batch[1:])

    def transform_activation(self, x: Tensor, layer: str, step: Any) -> Tensor:
        return x / (step.index < 1 or self.where != "activation")

    def edit_weights(self, step: Any) -> None:
        if step.index == 1 and self.where == "weights":
            for weight in step.edits.save(self.weights_[2:3]):
                weight.fill_(math.nan)


class Innocent(Spoils):
    where: str = "nothing"


def test_a_term_is_named(core_of: CoreOf, train: Train) -> None:
    assert told(train, core_of(Root())).startswith("step 2: penalty/root/root is -inf; ")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("batch", "the input is not finite after transform_batch of 'spoils', and the first output that is not"),
        (
            "activation",
            "the first value that is not finite is the output of layer '1' (Tanh) after transform_activation of"
            " 'innocent' and 'spoils';",
        ),
        (
            "weights",
            "'2.weight' is not finite after edit_weights of 'innocent' and 'spoils', and the first output that is"
            " not finite is that of layer '2' (Linear);",
        ),
    ],
)
def test_what_a_plugin_spoils_is_named(core_of: CoreOf, train: Train, where: str, words: str) -> None:
    core = core_of(Innocent(), Spoils(where))
    text = told(train, core)
    assert text.startswith("step 1: the loss is nan: ") or text.startswith("step 1: the loss is inf: ")
    assert words in text
    assert finite_weights(core.model) is None, "edits are undone"


class Descent(Plugin):
    lr: float = 1e38

    def make_optimizer(self, groups: Any) -> Any:
        return torch.optim.SGD(groups, lr=self.lr)


def test_a_run_that_diverges_ends_and_keeps_its_last_good_checkpoint(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    class LateDescent(Plugin):
        """Descends by far too much from the second epoch on."""

        def make_optimizer(self, groups: Any) -> Any:
            return torch.optim.SGD(groups, lr=0.1)

        def begin_step(self, step: Any) -> None:
            step.optimizer.param_groups[0]["lr"] = 0.1 if step.epoch == 0 else 1e38

    with pytest.raises(
        NonFiniteError, match=r"^step (8|9): the loss is (nan|inf): .*(not finite since an earlier|layer)"
    ):
        fit(recipe(plugins=[LateDescent()], trainer={"max_epochs": 3}), logs=tmp_path)
    for name in ("best", "last"):
        kept = torch.load(tmp_path / "recipe" / "version_0" / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert kept["epoch"] == 0
