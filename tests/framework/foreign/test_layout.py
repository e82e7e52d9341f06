from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from framework.foreign.layout import add_entries, find_entries, write_for_lightning


class Object:
    """No plain data."""


class Module(pl.LightningModule):
    def __init__(self, width: int = 2, loss: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["loss"])
        self.loss, self.net, self.found = loss or Object(), nn.Linear(width, 1), None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["object"], checkpoint["plain"] = self.loss, {"a": torch.ones(2)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.found = checkpoint["object"], checkpoint["plain"]


class Objects(Module):
    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_what_is_no_data_is_left_out_and_taken_from_the_module() -> None:
    module = Module(3)
    checkpoint: dict[str, Any] = {"framework": {}}
    add_entries(checkpoint, module, None)
    assert checkpoint["framework"]["omitted"] == ["object"]
    assert checkpoint["hyper_parameters"] == {"width": 3} and "object" not in checkpoint
    other = Module(3)
    find_entries(checkpoint, other, None)
    assert other.found is not None and other.found[0] is other.loss
    assert other.found[1]["a"].tolist() == [1, 1]


def test_hyperparameters_that_are_objects_are_left_out() -> None:
    checkpoint: dict[str, Any] = {"framework": {}, "hyper_parameters": {"thing": Object()}}
    add_entries(checkpoint, Objects(Object()), None)
    assert "hyper_parameters" not in checkpoint
    assert checkpoint["framework"]["omitted"] == ["hyper_parameters", "object"]


def test_a_file_for_load_from_checkpoint(tmp_path: Path) -> None:
    module = Objects(7)
    module.net = nn.Linear(2, 1)
    write_for_lightning(module, {"epoch": "3", "step": "12"}, tmp_path / "model.ckpt")
    read = Objects.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=False)
    assert torch.equal(read.net.weight, module.net.weight) and read.hparams["thing"] == 7
    assert torch.load(tmp_path / "model.ckpt", weights_only=False)["global_step"] == 12


class Numbers(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.at = state_dict["at"]


def test_the_state_of_a_data_module() -> None:
    numbers, other, checkpoint = Numbers(), Numbers(), {"framework": {}}
    numbers.at = 5
    add_entries(checkpoint, Module(), numbers)
    find_entries(checkpoint, Module(), other)
    assert other.at == 5
