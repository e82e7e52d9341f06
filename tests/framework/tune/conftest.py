"""A small recipe file to search, with two folds."""

from __future__ import annotations

from pathlib import Path

import pytest

RECIPE = '''
from typing import Annotated, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from framework import Data, LogRange, Recipe, UserError
from plugins.hidden_noise import HiddenNoise
from plugins.input_noise import InputNoise
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.strength_schedule import StrengthSchedule


def recipe(
    width: Annotated[int, LogRange(4, 32)] = 8,
    kind: Literal["tanh", "relu"] = "tanh",
    epochs: int = 2,
    fold: int | None = None,
    refuse: float = 0.0,
) -> Recipe:
    """Tell sums above zero from sums below."""
    if refuse > 1:
        raise UserError(f"refuse={refuse}: too much")
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(fold or 0))
    y = (x.sum(1) > 0).long()
    parts = [(x[:48], y[:48]), (x[48:72], y[48:72]), (x[72:], y[72:])]
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh() if kind == "tanh" else nn.ReLU(), nn.Linear(width, 2))
    plugins = [
        InputNoise(0.1),
        HiddenNoise("1", kind="masking", rate=0.1),
        NormPenalty(1e-3),
        StrengthSchedule("norm_penalty.alpha", start=0.0),
        Optimizer("AdamW", lr=0.01),
    ]
    return Recipe(
        model,
        Data(*parts, batch_size=16),
        cross_entropy,
        metrics={"accuracy": MulticlassAccuracy(2, average="micro")},
        plugins=plugins,
        trainer={"max_epochs": epochs},
    )
'''


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the recipe file."""
    path = tmp_path_factory.mktemp("searched") / "searched_recipe.py"
    path.write_text(RECIPE)
    return path
