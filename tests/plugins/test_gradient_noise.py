"""Noise on gradients: its size, its draws, what gets none, and that zero changes no bit."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from framework import Data, Plugin, Recipe, UserError, fit
from framework.ops.keyed import Stream
from framework.plugin import Step
from framework.plugin.edits import WeightEdits
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


def test_the_size_by_hand() -> None:
    assert deviation(0.09, 0.55, 0) == pytest.approx(0.3)
    assert deviation(4.0, 2.0, 4) == pytest.approx(0.4)
    assert deviation(0.09, 0.0, 1000) == pytest.approx(0.3)


def test_a_fit_equals_a_loop_by_hand() -> None:
    torch.manual_seed(1)
    model = nn.Linear(40, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = Data((X, Y), batch_size=16).train_loader(seed=3)
    before, step = mse_loss(model(X), Y).item(), 0
    for epoch in range(10):
        loader.set_epoch(epoch)
        for window in loader:
            x, y = window.batches[0]
            optimizer.zero_grad()
            mse_loss(model(x), y).backward()
            generator = Stream(3, "gradient_noise").torch(step, device="cpu")
            for p in model.parameters():
                p.grad += torch.randn(p.shape, generator=generator) * (1e-4 / (1 + step) ** 0.55) ** 0.5
            optimizer.step()
            step += 1
    torch.manual_seed(1)
    plugins = [GradientNoise(1e-4), Optimizer("SGD", lr=0.5)]
    options = {"max_epochs": 10, "enable_progress_bar": False}
    recipe = Recipe(nn.Linear(40, 20), Data((X, Y), batch_size=16), mse_loss, plugins=plugins, trainer=options)
    found = fit(recipe, seed=3, logs=None).core.model
    for ours, theirs in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert mse_loss(found(X), Y).item() < 0.5 * before


def noisy(model: nn.Module, eta: float = 0.25) -> nn.Module:
    """Add noise to gradients of 0."""
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    plugin = GradientNoise(eta)
    plugin.attach(types.SimpleNamespace(model=model))  # type: ignore[arg-type]
    with torch.no_grad():
        plugin.transform_gradients(Step(0, WeightEdits()))
    return model


def test_rows_of_padding_and_frozen_weights_get_none() -> None:
    padded = nn.Sequential(nn.Embedding(5, 3, padding_idx=-4), nn.Linear(3, 2))
    padded[1].bias.requires_grad_(False)
    noisy(padded)
    table: Any = padded[0].weight.grad
    assert (table != 0).all(1).tolist() == [True, False, True, True, True]
    assert (table[1] == 0).all()
    assert padded[1].bias.grad is None

    tied = nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Linear(3, 5, bias=False))
    tied[1].weight = tied[0].weight
    assert (noisy(tied)[0].weight.grad != 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_types_of_weights(dtype: torch.dtype) -> None:
    gradient: Any = noisy(nn.Linear(100, 100, bias=False, dtype=dtype)).weight.grad
    assert gradient.dtype == dtype
    wide = gradient.to(torch.complex128)
    assert wide.abs().square().mean().item() == pytest.approx(0.25, rel=0.05)
    if dtype.is_complex:
        assert wide.real.square().mean().item() == pytest.approx(0.125, rel=0.1)


def test_sparse_gradients_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 1))
    data = Data((torch.arange(4), torch.ones(4, 1)), batch_size=4)
    options = {"max_steps": 1, "enable_progress_bar": False}
    plugins = [GradientNoise(0.1), Optimizer("SGD", lr=0.1)]
    with pytest.raises(UserError, match=r"GradientNoise\(eta=0.1\): 0.weight has sparse gradients") as error:
        fit(Recipe(model, data, mse_loss, plugins=plugins, trainer=options), logs=None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientNoise(-1e-3), "eta must be a number >= 0"),
        (lambda: GradientNoise(float("nan")), "eta must be a finite number"),
        (lambda: GradientNoise(0.1, gamma=-1), "gamma must be a number >= 0"),
    ],
)
def test_mistakes_are_reported(make: Callable[[], GradientNoise], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
