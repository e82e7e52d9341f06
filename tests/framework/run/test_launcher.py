from __future__ import annotations

import pytest
import torch
from torch import nn

from framework import Data, Recipe, fit
from plugins.hidden_noise import HiddenNoise
from plugins.norm_penalty import NormPenalty


def recipe(strategy: str = "auto", devices: int = 1, batch_size: int = 8) -> Recipe:
    torch.manual_seed(0)
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    part = (x, x[:, :1])
    options = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"strategy": strategy, "devices": devices}
    data = Data(part, part, batch_size=batch_size)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    plugins = [HiddenNoise("Tanh", std=0.5), NormPenalty(1e-3)]
    return Recipe(model, data, nn.functional.mse_loss, plugins=plugins, trainer=options)


@pytest.mark.parametrize("strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_ranks_hand_back_what_one_process_has(strategy: str) -> None:
    alone = fit(recipe, logs=None, parameters={"batch_size": 16})
    ranks = fit(recipe, logs=None, parameters={"strategy": strategy, "devices": 2})
    assert (ranks.steps, ranks.epochs, ranks.best_epoch) == (alone.steps, alone.epochs, alone.best_epoch) == (4, 2, 1)
    assert ranks.metrics.keys() == alone.metrics.keys()
    assert ranks.metrics["val/loss"] == pytest.approx(alone.metrics["val/loss"], abs=1e-6)
    assert torch.allclose(ranks.core.model[0].weight, alone.core.model[0].weight, atol=1e-6)
