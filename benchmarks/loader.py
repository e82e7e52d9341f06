"""A user's ready ``DataLoader``: a fit by this framework over Lightning's own, both with everything on."""

from __future__ import annotations

import functools
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.measure import alternate
from benchmarks.peers import lightning, parts
from benchmarks.step import BATCH, EPOCHS, Loop, compared, fitted, network, ours
from benchmarks.versus import Row
from framework import Data, Recipe
from framework.report.progress import Bar
from plugins.optimizer import Optimizer


def plain() -> list[Optimizer]:
    """Return AdamW alone."""
    return [Optimizer("AdamW", lr=1e-3)]


def on_loaders(logs: Path) -> int:
    """Fit on ready loaders, with progress bar, TensorBoard, checkpoints, loss and accuracy."""
    train, val = (DataLoader(part, batch_size=BATCH, shuffle=not i) for i, part in enumerate(parts()))
    trainer = {"max_epochs": EPOCHS, "accelerator": "cpu", "check_val_every_n_epoch": EPOCHS, "callbacks": [Bar()]}
    accuracy = MulticlassAccuracy(10, average="micro")
    data = Data(train, val)
    recipe = Recipe(network(), data, cross_entropy, {"accuracy": accuracy}, plugins=plain(), trainer=trainer)
    return fitted(recipe, logs)


def by_lightning(logs: Path) -> int:
    """Fit a LightningModule on such loaders, with as much on."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return lightning(False, logs)


def rows(rounds: int = 8) -> list[Row]:
    """Return the rows; torch's number of threads is the caller's."""
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        contenders: dict[str, Loop] = {
            "a fit on a DataLoader": functools.partial(on_loaders, logs / "ours"),
            "Lightning on it": functools.partial(by_lightning, logs / "theirs"),
            "a fit on the same tensors": ours(plain, logs / "tensors"),
        }
        times = alternate(contenders, rounds)
    goals = {
        ("a fit on a DataLoader", "Lightning on it"): "<= 1.0",
        ("a fit on the same tensors", "a fit on a DataLoader"): "well below 1",
    }
    return compared(times, goals)
