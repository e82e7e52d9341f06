from __future__ import annotations

import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from framework import Data, Recipe, UserError, fit
from framework.foreign.update import Configured
from plugins.optimizer import Optimizer

ONE, OTHER = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1) for _ in range(2))
STEP = torch.optim.lr_scheduler.StepLR(ONE, 1)
PLATEAU = torch.optim.lr_scheduler.ReduceLROnPlateau(ONE)


@pytest.mark.parametrize(
    ("answer", "schedules"),
    [
        (ONE, []),
        ([ONE], []),
        (([ONE], [STEP]), [("epoch", 1, None)]),
        (([ONE], {"scheduler": STEP, "interval": "step", "frequency": 3}), [("step", 3, None)]),
        ({"optimizer": ONE, "lr_scheduler": PLATEAU, "monitor": "val"}, [("epoch", 1, "val")]),
        ({"optimizer": ONE, "lr_scheduler": {"scheduler": PLATEAU, "monitor": "val"}}, [("epoch", 1, "val")]),
        ([{"optimizer": ONE, "lr_scheduler": STEP}], [("epoch", 1, None)]),
    ],
)
def test_all_forms_of_one_optimizer(answer: Any, schedules: list[Any]) -> None:
    configured = Configured(answer, "Module")
    assert configured.optimizer is ONE
    assert [(one.interval, one.frequency, one.monitor) for one in configured.schedules] == schedules


@pytest.mark.parametrize(("answer", "words"), [((ONE, OTHER), "2 optimizers"), (None, "returned None")])
def test_what_is_not_one_optimizer(answer: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Configured(answer, "Module")


class Module(pl.LightningModule):
    """Warms its rate up in ``optimizer_step``, and has its own way of everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.told: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.param_groups[0]["lr"] = 0.1 * (batch_idx + 1) / 4
        optimizer.step(closure=optimizer_closure)
        self.told.append(("step", epoch, batch_idx))

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.2, gradient_clip_algorithm="norm")

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.told.append(("schedule", metric))
        scheduler.step()


def data() -> DataLoader[Any]:
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x), batch_size=2)


QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 2}


def test_the_modules_own_hooks_make_the_step() -> None:
    modules = []
    for bare in (True, False):
        pl.seed_everything(0, verbose=False)
        modules.append(module := Module())
        if bare:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Lightning's advice
                pl.Trainer(**QUIET, logger=False, enable_checkpointing=False).fit(module, data())
        else:
            fit(Recipe(module=module, data=Data(data()), trainer=QUIET), logs=None)
    bare_module, ours = modules
    assert torch.equal(bare_module.net.weight, ours.net.weight)
    assert bare_module.told == ours.told


def test_a_plugins_optimizer_takes_the_place_of_the_modules() -> None:
    class Plain(Module):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    run = fit(Recipe(module=Plain(), data=Data(data()), trainer=QUIET, plugins=[Optimizer(lr=0.5)]), logs=None)
    assert type(run.core.trainer.optimizers[0]) is torch.optim.AdamW
    with pytest.raises(UserError, match=r"Plain\.configure_gradient_clipping and optimizer both clip"):
        fit(Recipe(module=Plain(), data=Data(data()), trainer=QUIET, plugins=[Optimizer(clip_norm=1.0)]), logs=None)
