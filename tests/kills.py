"""Kill the workers of a study at random moments, and compare every trial with the same study left alone.

    python -m tests.kills --kills 200 --workers 8 --trials 40

Settings are drawn at random, so that a trial's settings depend on its number alone.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framework.tune import tune

RECIPE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, Recipe
from plugins.input_noise import InputNoise
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer


def recipe(epochs: int = 30) -> Recipe:
    x = torch.randn(192, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, :2].sum(1) > 0).long()
    parts = [(x[:96], y[:96]), (x[96:], y[96:])]
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))
    plugins = [InputNoise(0.1), NormPenalty(1e-3), Optimizer("AdamW", lr=0.01)]
    return Recipe(model, Data(*parts, batch_size=16), cross_entropy, plugins=plugins, trainer={"max_epochs": epochs})
"""


def figures(folder: Path, workers: int, trials: int, epochs: int) -> dict[int, Any]:
    """Run a study, or go on with it, and return settings and figures of its trials by number."""
    (folder / "killed_recipe.py").write_text(RECIPE)
    study = tune(
        folder / "killed_recipe.py",
        trials=trials,
        workers=workers,
        sampler="random",
        parameters={"epochs": epochs},
        logs=folder / "logs",
    )
    return {one.number: (one.state.name, one.params, one.value, one.user_attrs.get("epochs")) for one in study.trials}


def workers_of(pid: int) -> list[int]:
    """Return the processes that descend from the fork server of a process."""
    found = []
    for child in _children(pid):
        found += _children(child)
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def kill_workers(kills: int, rest: float, ended: threading.Event, done: list[int]) -> None:
    """Kill a random worker of this process, so many times, at random moments."""
    draw = random.Random(0)
    while len(done) < kills and not ended.is_set():
        time.sleep(draw.random() * 2 * rest)
        if mine := workers_of(os.getpid()):
            victim = draw.choice(mine)
            try:
                os.kill(victim, signal.SIGKILL)
                done.append(victim)
            except ProcessLookupError:
                continue


def compare(kills: int, workers: int, trials: int, epochs: int, rest: float) -> tuple[int, list[int]]:
    """Return the number of kills, and the trials that differ from the study left alone."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        ended, done = threading.Event(), []  # type: tuple[threading.Event, list[int]]
        killer = threading.Thread(target=kill_workers, args=(kills, rest, ended, done))
        killer.start()
        try:
            disturbed = figures(Path(one), workers, trials, epochs)
        finally:
            ended.set()
            killer.join()
        alone = figures(Path(other), 1, trials, epochs)
    assert disturbed.keys() == alone.keys() == set(range(trials)), (sorted(disturbed), sorted(alone))
    return len(done), [number for number in alone if alone[number] != disturbed[number]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the number of kills and the trials that differ; the exit code is 1 if there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rest", type=float, default=1.0, help="mean seconds between two kills")
    order = parser.parse_args(arguments)
    done, different = compare(order.kills, order.workers, order.trials, order.epochs, order.rest)
    print(
        f"{done} kills of {order.workers} workers; {order.trials} trials, of which {len(different)} differ: {different}"
    )
    return 1 if different or done < order.kills else 0


if __name__ == "__main__":
    sys.exit(main())
