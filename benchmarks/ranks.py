"""A step of the small network on two ranks, over Lightning's own ddp on the same network."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.measure import in_turn
from benchmarks.step import BATCH, compared, fitted, network, samples
from benchmarks.versus import Row
from framework import Data, Recipe
from framework.report.progress import Bar
from framework.run.quiet import quiet
from plugins.optimizer import Optimizer

RANKS: dict[str, Any] = {"accelerator": "cpu", "strategy": "ddp_fork", "devices": 2, "max_epochs": 6}
BEFORE = 20  # steps that do not count: the first ones include the ranks' initialization


class Clock(pl.Callback):
    """Write microseconds per step of rank zero to a file, the only way back from a forked rank.

    Args:
        file: where to.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.began = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start counting."""
        if trainer.global_step == BEFORE:
            self.began = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write."""
        if trainer.is_global_zero:
            spent = (time.perf_counter() - self.began) / (trainer.global_step - BEFORE)
            self.file.write_text(str(spent * 1e6))


class Module(pl.LightningModule):
    """The network as Lightning's users write it, without logging."""

    def __init__(self) -> None:
        super().__init__()
        self.model: nn.Module = network()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        x, y = batch
        return cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.0, fused=True)


def lightnings(folder: Path) -> Callable[[], float]:
    """Return Lightning's own ddp with everything off."""

    def run() -> float:
        clock = Clock(folder / "lightning")
        off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = pl.Trainer(**RANKS, **off, enable_model_summary=False, callbacks=[clock])
            trainer.fit(Module(), DataLoader(TensorDataset(*samples()), batch_size=BATCH // 2, shuffle=True))
        return float(clock.file.read_text())

    return run


def ours(folder: Path) -> Callable[[], float]:
    """Return a fit with TensorBoard, checkpoints, progress bar, loss and accuracy."""

    def run() -> float:
        x, y = samples()
        clock = Clock(folder / "ours")
        recipe = Recipe(
            network(),
            Data((x, y), (x[:64], y[:64]), batch_size=BATCH // 2),
            cross_entropy,
            {"accuracy": MulticlassAccuracy(10, average="micro")},
            plugins=[Optimizer("AdamW", lr=1e-3)],
            trainer={**RANKS, "check_val_every_n_epoch": RANKS["max_epochs"], "callbacks": [Bar(), clock]},
        )
        fitted(recipe, folder)
        return float(clock.file.read_text())

    return run


def rows(rounds: int = 8) -> list[Row]:
    """Return the rows; torch's number of threads is the caller's."""
    for who in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(who).setLevel(logging.ERROR)  # each run would report how its ranks connected
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contenders = {"2 ranks": ours(folder), "Lightning's own ddp, all else off": lightnings(folder)}
        times = in_turn(contenders, rounds)
    return compared(times, {("2 ranks", "Lightning's own ddp, all else off"): "<= 1.0"})
