from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from framework import Data, Plugin, Recipe, fit


class Draws(pl.LightningModule):
    """Its loss depends on a draw of torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.drawn = nn.Linear(1, 1), []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        drawn = torch.rand(1)
        self.drawn.append(float(drawn))
        seen.append(float(drawn))
        return (self.net(batch[:, None]) * drawn).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


class Twice(Plugin):
    def second_gradient(self, step: Any, again: Any) -> None:
        again(lambda: None)


seen: list[float] = []


def test_a_second_evaluation_draws_the_same_and_takes_no_draw() -> None:
    runs = []
    for plugins in ([], [Twice()]):
        seen.clear()
        torch.manual_seed(0)
        module = Draws()
        options = {"max_epochs": 1, "accumulate_grad_batches": 2, "accelerator": "cpu", "enable_progress_bar": False}
        data = Data(DataLoader(torch.arange(4.0), batch_size=1))
        fit(Recipe(module=module, data=data, plugins=plugins, trainer=options), logs=None)
        runs.append((module.drawn, list(seen)))
    (alone, _), (beside, twice) = runs
    assert beside == alone and len(set(alone)) == 4
    assert twice == [*alone[:2], *alone[:2], *alone[2:], *alone[2:]]
