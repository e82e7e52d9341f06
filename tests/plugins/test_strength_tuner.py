"""The derivative equals central differences, state resumes, and strengths move the way that lowers validation loss."""

from __future__ import annotations

import copy
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, Plugin, Recipe, Run, Step, UserError, fit
from framework.checkpoint.file import CheckpointFiles
from plugins.activation_sparsity import ActivationSparsity
from plugins.adversarial import Adversarial
from plugins.confidence_penalty import ConfidencePenalty
from plugins.hidden_noise import HiddenNoise
from plugins.input_noise import InputNoise
from plugins.label_smoothing import LabelSmoothing
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.sam import SAM
from plugins.strength_tuner import StrengthTuner
from plugins.weight_noise import WeightNoise
from tests.children import at_call, in_child

AT = 5  # the step that is looked at
OPTIMIZERS = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "weight_decay": 0.01, "options": {"momentum": 0.9}}),
    "nesterov": ("SGD", {"lr": 0.1, "options": {"momentum": 0.9, "nesterov": True}}),
    "adam": ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
}
STRENGTHS = {
    "norm_penalty.alpha": lambda: NormPenalty(0.3),
    "activation_sparsity.alpha": lambda: ActivationSparsity(0.3, layers="1"),
    "input_noise.std": lambda: InputNoise(0.3),
    "hidden_noise.std": lambda: HiddenNoise("1", std=0.3, kind="multiplicative"),
    "weight_noise.std": lambda: WeightNoise(0.3),
    "confidence_penalty.alpha": lambda: ConfidencePenalty(0.3),
    "label_smoothing.eps": lambda: LabelSmoothing(0.3),
    "adversarial.alpha": lambda: Adversarial(0.1, "vat", alpha=0.3),
}


class Nudge(Plugin):
    """Multiply a setting by a factor in one step alone, and keep the validation loss after it."""

    strength: str = ""
    factor: float = 1.0

    def attach(self, core: Any) -> None:
        self.core_ = core
        name, self.setting_ = self.strength.split(".")
        (self.plugin_,) = [plugin for plugin in core.plugins if plugin.name == name]
        self.value_ = getattr(self.plugin_, self.setting_)

    def begin_step(self, step: Step) -> None:
        setattr(self.plugin_, self.setting_, self.value_ * (self.factor if step.index == AT else 1.0))

    def after_update(self, step: Step) -> None:
        if step.index == AT:
            x, y = self.core_.data.val
            model = copy.deepcopy(self.core_.model).eval()
            self.loss_ = float(cross_entropy(model(x), y))

    def finish(self, core: Any) -> None:
        setattr(self.plugin_, self.setting_, self.value_)


class Keep(StrengthTuner):
    """Keeps the derivatives, and moves nothing."""

    def hypergradients(self, step: Step) -> dict[str, float]:
        before = [weight.detach().clone() for weight in self._weights()]
        found = super().hypergradients(step)
        assert all(torch.equal(a, b) for a, b in zip(before, self._weights(), strict=True))
        self.found_ = found
        return dict.fromkeys(found, 0.0)


def recipe(
    digits: Any, *plugins: Any, optimizer: str = "sgd", accumulate: int = 1, dropout: float = 0.1, **options: Any
) -> Recipe:
    x, y = digits[0].double(), digits[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 10)).double()
    size = options.pop("batch_size", 24) // accumulate
    data = Data((x[:120], y[:120]), (x[120:], y[120:]), batch_size=size)
    trainer = {"max_steps": AT + 1, "enable_progress_bar": False, "precision": "64-true", **options}
    trainer["accumulate_grad_batches"] = accumulate
    kind, given = OPTIMIZERS[optimizer]
    return Recipe(model, data, cross_entropy, plugins=[*plugins, Optimizer(kind, **given)], trainer=trainer)


def by_differences(digits: Any, strength: str, optimizer: str, accumulate: int = 1) -> float:
    losses, h = [], 1e-4
    for sign in (1, -1):
        nudge = Nudge(strength, math.exp(sign * h))
        fit(recipe(digits, nudge, STRENGTHS[strength](), optimizer=optimizer, accumulate=accumulate), logs=None)
        losses.append(nudge.loss_)
    return (losses[0] - losses[1]) / (2 * h)


def by_tuner(digits: Any, strength: str, optimizer: str, accumulate: int = 1, **options: Any) -> float:
    keep = Keep(strength, every=AT + 1, samples=60)
    plugins = (keep, STRENGTHS[strength]())
    fit(recipe(digits, *plugins, optimizer=optimizer, accumulate=accumulate, **options), logs=None)
    return keep.found_[strength]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("strength", ["norm_penalty.alpha", "input_noise.std", "weight_noise.std"])
def test_the_derivative_is_that_of_central_differences(strength: str, optimizer: str, digits: Any) -> None:
    assert by_tuner(digits, strength, optimizer) == pytest.approx(by_differences(digits, strength, optimizer), rel=1e-5)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_under_accumulation(strength: str, digits: Any) -> None:
    found = by_tuner(digits, strength, "adam", accumulate=3)
    assert found == pytest.approx(by_differences(digits, strength, "adam", accumulate=3), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strength", ["norm_penalty.alpha", "input_noise.std", "weight_noise.std"])
def test_on_two_ranks(strength: str, digits: Any) -> None:
    expected = by_tuner(digits, strength, "adamw", dropout=0.0)

    def two() -> None:
        options = {"strategy": "ddp_fork", "devices": 2, "accelerator": "cpu", "batch_size": 12, "dropout": 0.0}
        keep = Keep(strength, every=AT + 1, samples=60)

        class Look(pl.Callback):
            def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
                assert keep.found_[strength] == pytest.approx(expected, rel=1e-6)

        made = recipe(digits, keep, STRENGTHS[strength](), optimizer="adamw", **options)
        fit(made, logs=None, trainer={"callbacks": [Look()]})

    assert in_child(two) == 0


def trained(digits: Any, tuner: StrengthTuner | None, epochs: int = 6, **keys: Any) -> Run:
    plugins = [*([tuner] if tuner else []), NormPenalty(0.05), InputNoise(0.2)]
    options = {"max_steps": -1, "max_epochs": epochs}
    return fit(recipe(digits, *plugins, optimizer="adam", **options), **{"logs": None, **keys})


def test_a_penalty_that_is_too_strong_is_lowered(digits: Any) -> None:
    tuner = StrengthTuner("norm_penalty.alpha", every=2, rate=0.3)
    run = trained(digits, tuner, epochs=20)
    assert 0.05 * math.exp(tuner.logs_["norm_penalty.alpha"]) < 0.02
    assert run.metrics["val/loss"] < trained(digits, None, epochs=20).metrics["val/loss"]
    penalty = next(plugin for plugin in run.core.plugins if plugin.name == "norm_penalty")
    assert penalty.alpha == 0.05  # as declared, after the run


def test_without_moving_the_run_is_the_same(digits: Any) -> None:
    plain = trained(digits, None)
    seen = trained(digits, Keep(["norm_penalty.alpha", "input_noise.std"], every=2))
    for a, b in zip(plain.core.model.parameters(), seen.core.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_resumes_to_the_same_bits(digits: Any, tmp_path: Path) -> None:
    def tuner() -> StrengthTuner:
        return StrengthTuner(["norm_penalty.alpha", "input_noise.std"], every=3, rate=0.2)

    whole = trained(digits, tuner())

    def killed() -> None:
        at_call(CheckpointFiles, "save_checkpoint", 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
        trained(digits, tuner(), logs=tmp_path, checkpoint_steps=2)

    assert in_child(killed) == -signal.SIGKILL
    again = trained(digits, tuner(), logs=tmp_path, resume=True)
    for a, b in zip(whole.core.model.parameters(), again.core.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_reach_is_kept(digits: Any) -> None:
    tuner = StrengthTuner("norm_penalty.alpha", every=1, rate=2.0, reach=3.0)
    trained(digits, tuner, epochs=10)
    assert math.exp(tuner.logs_["norm_penalty.alpha"]) >= 1 / 3.0001


@pytest.mark.parametrize(
    ("plugins", "options", "words"),
    [
        ([StrengthTuner("norm_penalti.alpha")], {}, r"no plugin is called 'norm_penalti'; did you mean 'norm_penalty'"),
        ([StrengthTuner("norm_penalty.p")], {}, r"is not proportional to 'p' \(it is to: alpha\)"),
        ([StrengthTuner("norm_penalty.alpha"), SAM()], {}, r"sam changes gradients, which is not differentiated"),
        ([StrengthTuner("norm_penalty.alpha")], {"gradient_clip_val": 1.0}, r"gradient_clip_val clips gradients"),
        ([StrengthTuner("norm_penalty.alpha"), HiddenNoise("1", kind="masking", rate=0.1)], {}, None),
    ],
)
def test_what_cannot_be_tuned(plugins: Any, options: Any, words: str | None, digits: Any) -> None:
    made = recipe(digits, *plugins, NormPenalty(0.1), **options)
    if words is None:
        fit(made, logs=None)
        return
    with pytest.raises(UserError, match=words):
        fit(made, logs=None)


def test_strengths_of_zero_or_several_numbers(digits: Any) -> None:
    for alpha in (0.0, {"0": 0.1, "*": 0.2}):
        with pytest.raises(UserError, match=r"alpha=.*; must be one number above 0"):
            fit(recipe(digits, StrengthTuner("norm_penalty.alpha"), NormPenalty(alpha)), logs=None)

    class Two(NormPenalty):
        proportional = ("alpha", "scale")  # type: ignore[assignment]

    with pytest.raises(UserError, match=r"two of two; name one setting a plugin"):
        fit(recipe(digits, StrengthTuner(["two.alpha", "two.scale"]), Two(0.1)), logs=None)
    made = recipe(digits, StrengthTuner("norm_penalty.alpha"), NormPenalty(0.1))
    made.compile = {"backend": "eager"}
    with pytest.raises(UserError, match=r"a compiled network cannot be differentiated twice; leave compile out"):
        fit(made, logs=None)
    with pytest.raises(UserError, match=r"must be '<plugin>.<setting>'"):
        StrengthTuner("alpha")
    made = recipe(digits, StrengthTuner("norm_penalty.alpha"), NormPenalty(0.1))
    made.plugins[-1] = Optimizer("RMSprop", lr=0.01)
    with pytest.raises(UserError, match=r"differentiates SGD, Adam and AdamW; the optimizer is RMSprop"):
        fit(made, logs=None)
