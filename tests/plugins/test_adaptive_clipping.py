"""Adaptive clipping by hand, unit by unit, and as a bound on each step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from framework import Data, Recipe, fit
from framework.ops.matrices import as_matrices
from framework.ops.units import units_of
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
