from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from framework import UserError
from framework.data.modules import overridden
from framework.foreign.checks import check_module, lightning_base
from plugins.mixup import Mixup


class Module(pl.LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return batch.sum()

    def on_train_start(self) -> None: ...


class Child(Module):
    def on_fit_start(self) -> None: ...


class Iterates(Module):
    def training_step(self, dataloader_iter: Any) -> torch.Tensor:  # type: ignore[override]
        return next(dataloader_iter).sum()


class Several(Module):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> torch.Tensor:  # type: ignore[override]
        return batch.sum()


class Truncated(Module):
    truncated_bptt_steps = 5


class Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_a_hook_is_overridden_by_the_user_only() -> None:
    module = Child()
    assert overridden(module, "on_train_start") and overridden(module, "on_fit_start")
    assert not overridden(module, "on_train_end") and not overridden(module, "validation_step")
    module.on_train_end = lambda: None  # type: ignore[method-assign]
    assert overridden(module, "on_train_end")


def test_the_class_of_lightning() -> None:
    assert lightning_base(Child()) is pl.LightningModule
    assert lightning_base(nn.Linear(1, 1)) is None


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Linear(1, 1), "must be a LightningModule; received Linear"),
        (pl.LightningModule(), "has no training_step"),
        (Manual(), "steps its optimizers itself"),
        (Iterates(), "takes batches itself"),
        (Truncated(), "no longer calls it"),
        (Several(), "moves one optimizer"),
    ],
)
def test_refusals(module: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_module(module, [], False)


def test_what_a_module_does_itself() -> None:
    with pytest.raises(UserError, match=r"self\.net = torch\.compile"):
        check_module(Child(), [], True)
    with pytest.raises(UserError, match="mixup: mixes targets"):
        check_module(Child(), [Mixup()], False)
    check_module(Child(), [], False)
