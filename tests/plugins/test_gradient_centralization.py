"""Centralized gradients by hand, for all kinds of layers, and what stays in training."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import parametrizations

from framework import Data, Recipe, UserError, fit
from framework.ops.matrices import as_matrices
from framework.ops.units import Units, fan_in, units_of
from plugins.gradient_centralization import GradientCentralization, centralized
from plugins.optimizer import Optimizer


@pytest.mark.parametrize(
    "layer", [nn.Linear(5, 3), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2)]
)
def test_each_unit_has_mean_zero(layer: Any) -> None:
    weight = layer.weight.detach()
    found = as_matrices(centralized(weight, units_of(layer)), units_of(layer))
    rows = as_matrices(weight, units_of(layer))
    torch.testing.assert_close(found, rows - rows.mean(2, keepdim=True))


def test_a_units_weights_keep_their_mean_under_sgd() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    before = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    data = Data((x, x.sum(1, keepdim=True)), batch_size=16)
    plugins = [GradientCentralization(), Optimizer("SGD", lr=0.1)]
    options = {"max_epochs": 5, "enable_progress_bar": False}
    fit(Recipe(model, data, mse_loss, plugins=plugins, trainer=options), logs=None)
    for weight, start in zip((model[0].weight, model[2].weight), before, strict=True):
        assert not torch.allclose(weight, start)
        torch.testing.assert_close(weight.mean(1), start.mean(1), atol=1e-6, rtol=1e-5)


def test_tables_and_biases_are_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(4, 3), nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(self.table(x))

    plugin = GradientCentralization()
    data = Data((torch.arange(4), torch.ones(4, 1)), batch_size=4)
    recipe = Recipe(Net(), data, mse_loss, plugins=[plugin])
    core = recipe.make_core(0, {})
    core.attach_plugins()
    assert [weight is core.model.head.weight for weight, _ in plugin.chosen_] == [True]


def test_a_pattern_without_a_weight() -> None:
    recipe = Recipe(nn.Linear(2, 1), Data((torch.ones(2, 2), torch.ones(2, 1))), mse_loss)
    recipe.plugins = [GradientCentralization("conv*")]
    with pytest.raises(UserError, match=r"pattern 'conv\*' matches no weight of Linear"):
        fit(recipe, logs=None, trainer={"max_epochs": 1, "enable_progress_bar": False})


def test_by_hand() -> None:
    # two units of two inputs, and the same stored the other way round
    gradient = torch.tensor([[[[1.0, 3.0]], [[2.0, 6.0]]], [[[0.0, 1.0]], [[4.0, 7.0]]]])
    expected = torch.tensor([[[[-2.0, 0.0]], [[-1.0, 3.0]]], [[[-3.0, -2.0]], [[1.0, 4.0]]]])
    torch.testing.assert_close(centralized(gradient, Units()), expected)
    turned = centralized(gradient.transpose(0, 1).contiguous(), Units(1, 0))
    torch.testing.assert_close(turned.transpose(0, 1), expected)
    last = gradient.transpose(0, 1).contiguous(memory_format=torch.channels_last)
    assert torch.equal(centralized(last, Units(1, 0)), turned)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(5, 3), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3), nn.ConvTranspose1d(4, 6, 3, groups=2)],
    ids=str,
)
def test_a_unit_is_what_feeds_one_output(layer: Any) -> None:
    """The response to inputs shows which entries feed an output, however the layer stores them."""
    weight = layer.weight.detach()
    found = centralized(weight, units_of(layer))
    x = torch.rand(1, layer.weight.shape[1] if weight.ndim == 2 else 4, *[5] * (weight.ndim - 2)) + 1
    for unit in range(len(layer.bias)):
        (feeds,) = torch.autograd.grad(layer(x)[:, unit].sum(), layer.weight)
        entries = feeds != 0
        assert entries.sum() == fan_in(weight, units_of(layer))
        torch.testing.assert_close(found[entries], weight[entries] - weight[entries].mean())


def test_a_fit_equals_a_loop_by_hand() -> None:
    x = torch.randn(48, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    y = x.mean((1, 2, 3))[:, None]

    def network() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))

    model, data = network(), Data((x, y), batch_size=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = data.train_loader(seed=3)
    for epoch in range(3):
        loader.set_epoch(epoch)
        for window in loader:
            inner, target = window.batches[0]
            optimizer.zero_grad()
            mse_loss(model(inner), target).backward()
            for p in model.parameters():
                if p.ndim > 1:
                    p.grad.add_(-p.grad.mean(dim=tuple(range(1, p.ndim)), keepdim=True))
            optimizer.step()
    plugins = [GradientCentralization(), Optimizer("SGD", lr=0.05, options={"momentum": 0.9})]
    options = {"max_epochs": 3, "enable_progress_bar": False}
    run = fit(Recipe(network(), data, mse_loss, plugins=plugins, trainer=options), seed=3, logs=None)
    for ours, theirs in zip(run.core.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def chosen(model: nn.Module, **settings: Any) -> list[Tensor]:
    plugin = GradientCentralization(**settings)
    plugin.attach(types.SimpleNamespace(model=model))  # type: ignore[arg-type]
    return [weight for weight, _ in plugin.chosen_]


def test_units_of_one_input_train() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    before = model[0].weight.detach().clone()
    assert [weight is model[2].weight for weight in chosen(model)] == [True]
    depthwise = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 3, 3, groups=3))
    assert [weight is depthwise[1].weight for weight in chosen(depthwise)] == [True]
    x = torch.linspace(-1, 1, 32)[:, None]
    plugins = [GradientCentralization(), Optimizer("SGD", lr=0.1)]
    options = {"max_epochs": 3, "enable_progress_bar": False}
    fit(Recipe(model, Data((x, x.sin()), batch_size=8), mse_loss, plugins=plugins, trainer=options), logs=None)
    assert (model[0].weight != before).all()


def test_parametrized_and_tied_tables_are_left_alone() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Embedding(4, 3)), nn.Linear(3, 2))
    assert [weight is model[1].weight for weight in chosen(model)] == [True]
    tied = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False), nn.Linear(4, 2))
    tied[1].weight = tied[0].weight
    assert [weight is tied[2].weight for weight in chosen(tied)] == [True]


def test_patterns_without_an_effect() -> None:
    model = nn.Sequential(nn.Embedding(4, 1), nn.Linear(1, 3), nn.Linear(3, 1))
    for pattern, name in (("0", "0.weight"), ("1", "1.weight")):
        with pytest.raises(UserError, match=rf"weights='{pattern}'\): nothing to centralize in {name}") as error:
            chosen(model, weights=pattern)
        assert "\n" not in str(error.value)
