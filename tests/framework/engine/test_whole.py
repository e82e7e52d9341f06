from __future__ import annotations

import torch
from torch import nn

from framework import Data, Recipe, fit
from framework.engine.whole import loss_over_training


def test_the_mean_over_all_training_samples() -> None:
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    data = Data((x, x.sum(1, keepdim=True)), batch_size=4)
    options = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    model = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.9))
    run = fit(Recipe(model, data, nn.functional.mse_loss, trainer=options), logs=None)
    right = nn.functional.mse_loss(model[0](data.train[0]), data.train[1]).item()
    assert abs(loss_over_training(run.core, data) - right) < 1e-6
    assert model[1].training
