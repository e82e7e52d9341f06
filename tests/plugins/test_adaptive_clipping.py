"""Adaptive clipping by hand, unit by unit, and as a bound on each step."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from framework import Data, Recipe, UserError, fit
from framework.ops.matrices import as_matrices
from framework.ops.units import units_of
from framework.plugin import Step
from framework.plugin.edits import WeightEdits
from plugins.adaptive_clipping import AdaptiveClipping, clipped
from plugins.optimizer import Optimizer


def test_rows_by_hand() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [30.0, 40.0]])
    gradient = torch.tensor([[6.0, 8.0], [0.3, 0.4], [3.0, 4.0]])
    found = clipped(gradient, weight, ratio=0.2, least=0.5)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.06, 0.08], [3.0, 4.0]]))
    assert clipped(torch.zeros(1, 2), weight[:1], 0.2, 0.5).tolist() == [[0, 0]]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_moves_each_unit_by_a_share_of_it(accumulate: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 2, 8, 8)
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(256, 1)
    )
    before: list[Any] = [(layer, layer.weight.detach().clone()) for layer in (model[0], model[2], model[4])]
    data = Data((x, 100 * torch.ones(16, 1)), batch_size=16 // accumulate)
    plugins = [AdaptiveClipping(0.1), Optimizer("SGD", lr=0.5)]
    options = {"max_steps": 1, "enable_progress_bar": False, "accumulate_grad_batches": accumulate}
    fit(Recipe(model, data, mse_loss, plugins=plugins, trainer=options), logs=None)
    for layer, start in before:
        moved = as_matrices(layer.weight.detach() - start, units_of(layer)).norm(dim=-1)
        size = as_matrices(start, units_of(layer)).norm(dim=-1)
        assert (moved <= 0.5 * 0.1 * size * 1.001).all()
        assert (moved > 0).any()


def test_half_precision_keeps_small_bounds_and_large_norms() -> None:
    small = clipped(torch.full((1, 4), 1e-3), torch.zeros(1, 4), ratio=0.1, least=1e-3)
    half = clipped(torch.full((1, 4), 1e-3).half(), torch.zeros(1, 4).half(), ratio=0.1, least=1e-3)
    torch.testing.assert_close(half, small.half(), rtol=1e-3, atol=0)
    large = clipped(torch.full((1, 400), 6e4).half(), torch.full((1, 400), 6e4).half(), ratio=0.5, least=1e-3)
    torch.testing.assert_close(large, torch.full((1, 400), 3e4).half())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_gradients_within_the_bound_keep_their_bits(dtype: torch.dtype) -> None:
    gradient = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    assert torch.equal(clipped(gradient, gradient, ratio=1.5, least=1e-3), gradient)
    assert clipped(gradient, gradient, ratio=0.5, least=1e-3).dtype == dtype
    torch.testing.assert_close(clipped(gradient, gradient, ratio=0.5, least=1e-3), gradient / 2)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1))


def by_hand(p: Tensor, ratio: float, least: float = 1e-3) -> None:
    """Clip as the method is commonly written, for layers with their output units in the first dimension."""
    dims = tuple(range(1, p.ndim))
    size, length = (t.pow(2).sum(dims, keepdim=True).sqrt() if dims else t.abs() for t in (p.detach(), p.grad))
    most = size.clamp(min=least) * ratio
    p.grad = torch.where(length > most, p.grad * (most / length.clamp(min=1e-6)), p.grad)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_a_fit_equals_a_loop_by_hand_and_combines_with_clipping_by_norm(clip_norm: float | None) -> None:
    x = torch.randn(48, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    data, model, both = Data((x, 5 * x.mean((1, 2, 3))[:, None] + 1), batch_size=16), network(), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    loader = data.train_loader(seed=3)
    for epoch in range(4):
        loader.set_epoch(epoch)
        for window in loader:
            inner, target = window.batches[0]
            optimizer.zero_grad()
            mse_loss(model(inner), target).backward()
            before = [p.grad.clone() for p in model.parameters()]
            for name, p in model.named_parameters():
                if not name.startswith("5"):
                    by_hand(p, 0.02)
            changed = not all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm or 1e9)
            both += changed and norm > (clip_norm or 0)
            optimizer.step()
    assert both
    plugins = [
        AdaptiveClipping(0.02, without="5"),
        Optimizer("SGD", lr=0.5, clip_norm=clip_norm, options={"momentum": 0.9}),
    ]
    options = {"max_epochs": 4, "enable_progress_bar": False}
    run = fit(Recipe(network(), data, mse_loss, plugins=plugins, trainer=options), seed=3, logs=None)
    for ours, theirs in zip(run.core.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def attached(model: nn.Module, **settings: Any) -> AdaptiveClipping:
    plugin = AdaptiveClipping(**settings)
    plugin.attach(types.SimpleNamespace(model=model))  # type: ignore[arg-type]
    return plugin


def test_what_is_left_out_and_what_is_frozen_keep_their_gradients() -> None:
    model = network()
    plugin = attached(model, without=["5", "*.bias"])
    assert list(plugin.chosen_) == ["0.weight", "3.weight"]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[0].weight.requires_grad_(False)
    with torch.no_grad():
        plugin.transform_gradients(Step(0, WeightEdits()))
    changed = [name for name, p in model.named_parameters() if not (p.grad == 1).all()]
    assert changed == ["3.weight"]


def test_sparse_gradients_are_refused() -> None:
    data = Data((torch.arange(4), torch.ones(4, 1)), batch_size=4)
    options = {"max_steps": 1, "enable_progress_bar": False}

    def train(plugin: AdaptiveClipping) -> None:
        model = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 1))
        plugins = [plugin, Optimizer("SGD", lr=0.1)]
        fit(Recipe(model, data, mse_loss, plugins=plugins, trainer=options), logs=None)

    with pytest.raises(UserError, match=r"0\.weight has sparse gradients.*without='0\.weight'") as error:
        train(AdaptiveClipping())
    assert "\n" not in str(error.value)
    train(AdaptiveClipping(without="0.weight"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveClipping(0), "ratio must be a number > 0"),
        (lambda: AdaptiveClipping(least=-1), "least must be a number > 0"),
        (lambda: attached(network(), weights="conv"), "pattern 'conv' matches no weight"),
        (lambda: attached(network(), without="head"), r"without='head'\): pattern 'head' matches no parameter"),
        (lambda: attached(network(), weights="5", without="*"), "leaves no weight"),
    ],
)
def test_mistakes_are_reported(make: Callable[[], AdaptiveClipping], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
