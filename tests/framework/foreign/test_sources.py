from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from framework import Data, UserError
from framework.foreign.sources import Sources


class Module(pl.LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> Any: ...


class WithLoader(Module):
    def train_dataloader(self) -> Any:
        return DataLoader(range(3))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch + 1


class Numbers(pl.LightningDataModule):
    def setup(self, stage: str) -> None:
        self.stage = stage

    def train_dataloader(self) -> Any:
        return DataLoader(range(5))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch * 10


def test_data_come_before_the_data_module_and_that_before_the_module() -> None:
    loader = DataLoader(range(7))
    assert Sources(WithLoader(), Data(loader)).training_loader() is loader
    assert len(Sources(WithLoader(), Data(Numbers())).training_loader()) == 5
    assert len(Sources(WithLoader(), None).training_loader()) == 3
    assert Sources(WithLoader(), None).loaders("val") is None


def test_samples_of_the_recipes_data_are_not_ready() -> None:
    data = Data((torch.zeros(3),), val=DataLoader(range(2)))
    sources = Sources(Module(), data)
    assert sources.own("train") is data and sources.own("val") is None and sources.own("test") is None


def test_batches_are_moved_by_the_hooks_of_both() -> None:
    sources = Sources(WithLoader(), Data(numbers := Numbers()))
    sources.set_up(None, "fit")
    assert numbers.stage == "fit"
    assert sources.move(torch.ones(1), torch.device("cpu"), 0).tolist() == [20.0]


class Both(Module):
    def train_dataloader(self) -> Any:
        return {"a": DataLoader(range(3)), "b": DataLoader(range(3))}


def test_no_loader_and_several() -> None:
    with pytest.raises(UserError, match=r"give Recipe\(data=\.\.\.\), or write Module.train_dataloader"):
        Sources(Module(), None).training_loader()
    with pytest.raises(UserError, match="give one loader whose batch is a mapping"):
        Sources(Both(), None).training_loader()
