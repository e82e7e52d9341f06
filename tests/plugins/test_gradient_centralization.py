"""Centralized gradients by hand, for all kinds of layers, and what stays in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from framework import Data, Recipe, UserError, fit
from framework.ops.matrices import as_matrices
from framework.ops.units import units_of
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
