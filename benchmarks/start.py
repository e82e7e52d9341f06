"""The time from typing ``fit`` to the end of the first step, over importing torch and Lightning."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import in_turn
from benchmarks.step import compared
from benchmarks.versus import Row

RECIPE = '''
import os

import pytorch_lightning as pl
import torch
from torch import nn

from framework import Data, Recipe


class Leave(pl.Callback):
    """Exit the process after the first step."""

    def on_train_batch_end(self, *_):
        os._exit(0)


def recipe() -> Recipe:
    x, y = torch.randn(640, 64), torch.randint(10, (640,))
    data, model = Data((x, y), batch_size=64), nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    trainer = {"max_epochs": 1, "accelerator": "cpu", "callbacks": [Leave()]}
    return Recipe(model, data, nn.functional.cross_entropy, trainer=trainer, monitor="train/loss")
'''


def process(*command: str) -> Callable[[], float]:
    """Return a function that runs Python and returns the microseconds.

    Raises:
        CalledProcessError: where it fails.
    """

    def run() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        return (time.perf_counter() - began) * 1e6

    return run


def rows(rounds: int = 7) -> list[Row]:
    """Return the rows; torch's number of threads is that of the environment."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "tiny.py"
        recipe.write_text(RECIPE)
        contenders = {
            "fit, to the first step": process("-m", "framework", "fit", str(recipe), "--logs", folder),
            "importing torch and pytorch_lightning": process("-c", "import os, torch, pytorch_lightning; os._exit(0)"),
        }
        times = in_turn(contenders, rounds)
    return compared(times, {("fit, to the first step", "importing torch and pytorch_lightning"): "<= 1.2"})
