from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from framework import Data, Recipe, UserError, fit
from plugins.hidden_noise import HiddenNoise

OPTIONS = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


class Late(pl.LightningModule):
    """Makes its layers once it knows its data."""

    def setup(self, stage: str) -> None:
        self.net = nn.Linear(self.trainer.datamodule.width, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches = self.trainer.num_training_batches
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Numbers(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.width, self.told = 0, []

    def prepare_data(self) -> None:
        self.told.append("prepare")

    def setup(self, stage: str) -> None:
        self.told.append(stage)
        self.width = 3

    def teardown(self, stage: str) -> None:
        self.told.append("end")

    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(10, 3), batch_size=2)


def test_layers_that_are_made_in_setup() -> None:
    module, numbers = Late(), Numbers()
    options = {**OPTIONS, "accumulate_grad_batches": 2}
    recipe = Recipe(module=module, data=numbers, plugins=[HiddenNoise("net", std=0.1)], trainer=options)
    run = fit(recipe, logs=None)
    assert run.steps == 3 and module.batches == 5
    assert numbers.told == ["prepare", "fit", "end"]


class Plain(Late):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.answer = nn.Linear(3, 1), 42

    def setup(self, stage: str) -> None: ...

    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(4, 3), batch_size=2)


class Looks(pl.Callback):
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.found = pl_module.answer
        with pytest.raises(AttributeError, match="missing"):
            pl_module.missing  # noqa: B018


def test_callbacks_find_the_modules_attributes() -> None:
    looks = Looks()
    fit(Recipe(module=Plain(), plugins=[looks], trainer=OPTIONS), logs=None)
    assert looks.found == 42


def test_data_that_the_framework_makes_batches_of() -> None:
    module = Plain()
    module.training_step = lambda batch, batch_idx: module.net(batch[0]).square().mean()  # type: ignore[method-assign]
    assert (
        fit(Recipe(module=module, data=Data((torch.ones(6, 3),), batch_size=2), trainer=OPTIONS), logs=None).steps == 3
    )


def test_no_data_at_all() -> None:
    class Nothing(Plain):
        train_dataloader = pl.LightningModule.train_dataloader

    with pytest.raises(UserError, match="Nothing has no training data"):
        fit(Recipe(module=Nothing(), trainer=OPTIONS), logs=None)
