"""What every test shares: one torch thread, quiet Lightning, a small real data set, quick fits."""

from __future__ import annotations

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from framework.data import Data
from framework.engine.core import Core
from framework.engine.loop import EpochLoop
from framework.engine.notices import as_callbacks
from framework.plugin import Plugin
from framework.recipe.recipe import Recipe
from framework.run.quiet import quiet

torch.set_num_threads(1)
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

QUICK: dict[str, Any] = {
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "accelerator": "cpu",
}


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """Return 180 of scikit-learn's digits, ``(180, 64)`` in [0, 1], and their classes."""
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:180] / 16, dtype=torch.float32), torch.tensor(y[:180])


@pytest.fixture
def data(digits: tuple[Tensor, Tensor]) -> Data:
    """Return training, validation and test part of 100, 41 and 39 digits in batches of 16: the last holds 4."""
    x, y = digits
    return Data((x[:100], y[:100]), (x[100:141], y[100:141]), (x[141:], y[141:]), batch_size=16)


@pytest.fixture(scope="session")
def mlp() -> Callable[..., nn.Sequential]:
    """Return a function that makes a 64-12-10 network, the same at every call."""

    def make(*, seed: int = 0, hidden: nn.Module | None = None) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(64, 12), hidden or nn.Tanh(), nn.Linear(12, 10))

    return make


@pytest.fixture
def core_of(data: Data, mlp: Callable[..., nn.Sequential]) -> Callable[..., Core]:
    """Return a function that makes a core on the digits from its plugins."""

    def make(*plugins: Plugin, model: nn.Module | None = None, kind: type[Core] = Core, **options: Any) -> Core:
        options = {"loss": cross_entropy, "data": data, **options}
        return kind(model or mlp(), plugins=plugins, **options)

    return make


@pytest.fixture
def train() -> Callable[..., pl.Trainer]:
    """Return a function that trains a core for one epoch, or as the Trainer's options say."""

    def run(core: Core, *, callbacks: Sequence[pl.Callback] = (), ckpt_path: Any = None, **options: Any) -> pl.Trainer:
        trainer = pl.Trainer(**{**QUICK, **options}, callbacks=[*as_callbacks(core.plugins), *callbacks])
        trainer.fit_loop.epoch_loop = EpochLoop(trainer.fit_loop.epoch_loop)
        with quiet():
            trainer.fit(core, ckpt_path=ckpt_path)
        return trainer

    return run


@pytest.fixture
def recipe(data: Data, mlp: Callable[..., nn.Sequential]) -> Callable[..., Recipe]:
    """Return a recipe function: digits, the small network, accuracy, the plugins given."""

    def digits_mlp(plugins: Sequence[pl.Callback] = (), **changes: Any) -> Recipe:
        parts = {"loss": cross_entropy, "metrics": {"accuracy": MulticlassAccuracy(10, average="micro")}, **changes}
        options = {**QUICK, "logger": True, "enable_checkpointing": True, **parts.pop("trainer", {})}
        return Recipe(mlp(), parts.pop("data", data), plugins=list(plugins), trainer=options, **parts)

    return digits_mlp


def weights_of(core: Core) -> Tensor:
    """Return all parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in core.model.parameters()])


@pytest.fixture(scope="session")
def weights() -> Callable[[Core], Tensor]:
    """Return the function that gives all parameters of a core as one vector."""
    return weights_of
