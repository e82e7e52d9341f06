"""Learning rates by depth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, Recipe, UserError, fit
from plugins.layer_decay import LayerDecay
from plugins.optimizer import Optimizer


def rates(digits: Any, *plugins: Any) -> dict[str, float]:
    net = nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 10))
    recipe = Recipe(
        net,
        Data(digits, batch_size=60),
        cross_entropy,
        plugins=list(plugins),
        trainer={"max_epochs": 1, "enable_progress_bar": False},
    )
    core = fit(recipe, logs=None).core
    names = {id(p): name for name, p in core.model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in core.trainer.optimizers[0].param_groups for p in group["params"]}


def test_rates_fall_with_depth(digits: Any) -> None:
    found = rates(digits, Optimizer("AdamW", lr=0.1, weight_decay=0.1), LayerDecay(0.5))
    assert found["3.weight"] == found["3.bias"] == 0.1
    assert found["2.weight"] == pytest.approx(0.05)
    assert found["0.weight"] == found["1.weight"] == pytest.approx(0.025)
    assert len(found) == 8


def test_groups_of_the_optimizer_multiply(digits: Any) -> None:
    optimizer = Optimizer("SGD", lr=0.1, groups={"0": {"lr_scale": 4.0}})
    found = rates(digits, optimizer, LayerDecay(0.5, blocks=["0,1", "2", "3"]))
    assert found["0.weight"] / found["1.weight"] == pytest.approx(4.0)
    assert found["3.weight"] / found["2.weight"] == pytest.approx(2.0)


def test_lower_blocks_move_less(digits: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match="no learning rate to scale; put it after Optimizer"):
        rates(digits, LayerDecay(0.5))
    with pytest.raises(UserError, match="must stand after"):
        rates(digits, LayerDecay(0.5), Optimizer("SGD", lr=0.1))
    with pytest.raises(UserError, match="matches no parameter"):
        rates(digits, Optimizer("SGD", lr=0.1), LayerDecay(0.5, blocks=["9"]))
