"""Strengths by gradient against a random search: test loss and time, on small sets.

    python -m benchmarks.strengths --data DIR --seeds 3 --trials 20

Each set trains one network with a penalty, noise on inputs and noise on hidden units: with strengths as declared, with
``StrengthTuner`` moving them, and as the best of random trials by validation loss, whose strengths are drawn from
their ranges. The best epoch by validation loss is tested. Times are over that of a plain run.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from framework import Data, Recipe, fit
from framework.data.fetch import DataFile, fetch
from framework.data.split import parts
from plugins.early_stopping import EarlyStopping
from plugins.hidden_noise import HiddenNoise
from plugins.input_noise import InputNoise
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.strength_tuner import StrengthTuner
from recipes.fashion_mnist import read_idx
from recipes.tabular import divided, read_table

DECLARED = {"norm_penalty.alpha": 1e-3, "input_noise.std": 0.1, "hidden_noise.std": 0.1}
RANGES = {"norm_penalty.alpha": (1e-5, 1e-1), "input_noise.std": (0.01, 1.0), "hidden_noise.std": (0.01, 1.0)}
IMAGES = {"mnist": "mnist", "fashion": "fashion-mnist"}
Parts = list[tuple[Tensor, Tensor]]


def read(name: str, data: Path | None) -> Parts:
    """Return training, validation and test part of a set: 2,000 images, or a table."""
    if name not in IMAGES:
        return divided(*read_table(name, data))
    files = [DataFile(f"{IMAGES[name]}/train-{part}-ubyte") for part in ("images-idx3", "labels-idx1")]
    x, y = (read_idx(path) for path in fetch(files, data))
    chosen = [x[:2000].flatten(1) / 255, y[:2000].long()]
    return [(chosen[0][part], chosen[1][part]) for part in parts(2000, stratify=chosen[1])]


def train(
    part: Parts, seed: int, epochs: int, strengths: dict[str, float], *, tuned: bool
) -> tuple[float, float, float]:
    """Return best validation loss, test loss of that epoch, and seconds."""
    classes = int(max(y.max() for _, y in part)) + 1
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(part[0][0].shape[1], 128), nn.ReLU(), nn.Linear(128, classes))
    plugins: list[Any] = [StrengthTuner(list(DECLARED), every=10)] if tuned else []
    plugins += [
        InputNoise(strengths["input_noise.std"]),
        HiddenNoise("ReLU", std=strengths["hidden_noise.std"], kind="multiplicative"),
        NormPenalty(strengths["norm_penalty.alpha"]),
        Optimizer("Adam", lr=1e-3),
        EarlyStopping(patience=epochs),
    ]
    trainer = {"max_epochs": epochs, "enable_progress_bar": False, "enable_model_summary": False}
    recipe = Recipe(model, Data(*part[:2], batch_size=64), nn.CrossEntropyLoss(), plugins=plugins, trainer=trainer)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = fit(recipe, seed=seed, logs=None)
    seconds = time.perf_counter() - began
    with torch.no_grad():
        loss = nn.functional.cross_entropy(run.core.model.eval()(part[2][0]), part[2][1])
    return run.metrics["val/loss"], float(loss), seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each set."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strengths", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", default="mnist,fashion,kc1,segment")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--trials", type=int, default=20)
    order = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(
        "| set | declared | tuned | best of trials | time, tuned | time, trials |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for name in order.sets.split(","):
        part, rows = read(name, order.data), []
        for seed in range(order.seeds):
            draw = random.Random(seed)
            plain = train(part, seed, order.epochs, DECLARED, tuned=False)
            tuned = train(part, seed, order.epochs, DECLARED, tuned=True)
            found = []
            for _ in range(order.trials):
                drawn = {one: math.exp(draw.uniform(*map(math.log, ends))) for one, ends in RANGES.items()}
                found.append(train(part, seed, order.epochs, drawn, tuned=False))
            rows.append([plain[1], tuned[1], min(found)[1], tuned[2] / plain[2], sum(f[2] for f in found) / plain[2]])
        cells = [f"{statistics.fmean(column):.4f}" for column in zip(*[row[:3] for row in rows], strict=True)]
        times = [f"x {statistics.median(column):.2f}" for column in zip(*[row[3:] for row in rows], strict=True)]
        print(f"| {name} | {' | '.join([*cells, *times])} |", flush=True)


if __name__ == "__main__":
    main()
