"""Noise on gradients: its size, its draws, and that zero changes no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from framework import Data, Plugin, Recipe, fit
from framework.plugin import Step
from plugins.gradient_noise import GradientNoise, deviation
from plugins.optimizer import Optimizer

X = torch.randn(32, 40, generator=torch.Generator().manual_seed(0))
Y = X[:, :20]


class Watch(Plugin):
    """Keeps the gradients of each step."""

    def attach(self, core: Any) -> None:
        self.model_, self.seen_ = core.model, []

    def transform_gradients(self, step: Step) -> None:
        self.seen_.append(self.model_.weight.grad.clone())


def gradients(*plugins: Any, **options: Any) -> list[Tensor]:
    torch.manual_seed(1)
    watch = Watch()
    data = Data((X, Y), batch_size=options.pop("batch_size", 16))
    trainer = {"max_steps": 40, "enable_progress_bar": False, **options}
    every = [*plugins, watch, Optimizer("SGD", lr=0.0)]
    fit(Recipe(nn.Linear(40, 20), data, mse_loss, plugins=every, trainer=trainer), logs=None)
    return list(watch.seen_)


def test_the_noise_has_the_size_of_the_formula() -> None:
    noise = [a - b for a, b in zip(gradients(GradientNoise(0.5)), gradients(), strict=True)]
    for step in (0, 10, 39):
        assert noise[step].std().item() == pytest.approx(deviation(0.5, 0.55, step), rel=0.1)
        assert abs(noise[step].mean().item()) < 0.15 * deviation(0.5, 0.55, step)
    assert abs(torch.corrcoef(torch.stack([noise[0].flatten(), noise[1].flatten()]))[0, 1]) < 0.15


def test_draws_do_not_depend_on_how_a_step_is_cut() -> None:
    whole = gradients(GradientNoise(0.5))
    cut = gradients(GradientNoise(0.5), batch_size=4, accumulate_grad_batches=4)
    torch.testing.assert_close(whole, cut)


def test_zero_changes_no_bit() -> None:
    assert all(torch.equal(a, b) for a, b in zip(gradients(GradientNoise(0.0)), gradients(), strict=True))
