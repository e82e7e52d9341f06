from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from framework import UserError
from framework.foreign.steps import Steps


class Module(pl.LightningModule):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.told = answer, []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.answer

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.told.append((outputs, batch, batch_idx))


class OneArgument(Module):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return batch.sum()


LOSS = torch.ones((), requires_grad=True) * 2


@pytest.mark.parametrize("answer", [LOSS, {"loss": LOSS, "other": 3}])
def test_the_loss_and_what_the_hook_is_told(answer: Any) -> None:
    steps = Steps(module := Module(answer))
    steps.begin("batch", 4)
    assert steps("batch") is LOSS
    steps.end()
    steps.end()
    ((outputs, batch, index),) = module.told
    assert (batch, index) == ("batch", 4) and float(outputs["loss"]) == 2 and not outputs["loss"].requires_grad
    assert outputs.get("other") == (3 if isinstance(answer, dict) else None)


def test_a_step_without_an_index_and_one_that_leaves_a_batch_out() -> None:
    assert float(Steps(OneArgument(None))(torch.ones(3)) or 0) == 3
    steps = Steps(module := Module(None))
    assert steps("batch") is None
    steps.end()
    assert module.told == [({}, "batch", 0)]


@pytest.mark.parametrize("answer", [1.0, {"value": LOSS}, (LOSS,)])
def test_an_answer_without_a_loss(answer: Any) -> None:
    with pytest.raises(UserError, match=r"Module\.training_step returned"):
        Steps(Module(answer))("batch")
