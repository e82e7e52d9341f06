"""The cost of a training step on a convolutional network of some 25 ms per step, over a handwritten loop.

The time is that of the steps of one epoch without the first two: costs that occur once per run (pictures and histograms
for TensorBoard, statistics of averaged weights) would weigh too much on so few steps.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.measure import in_turn
from benchmarks.step import cocktail, compared, fitted
from benchmarks.versus import Row
from framework import Core, Data, Plugin, Recipe, Step
from framework.report.progress import Bar
from plugins.optimizer import Optimizer

BATCH, STEPS, BEFORE = 32, 40, 2


def samples() -> tuple[Tensor, Tensor]:
    """Return random images ``(1280, 3, 32, 32)`` and their classes."""
    generator = torch.Generator().manual_seed(0)
    count = BATCH * STEPS
    return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)


def network() -> nn.Sequential:
    """Return three convolutions with normalization, and a linear layer."""
    torch.manual_seed(0)

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

    pool = nn.MaxPool2d(2)
    layers = [*block(3, 24), pool, *block(24, 48), pool, *block(48, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


class Clock(Plugin):
    """Record the time at the start of each step."""

    def attach(self, core: Core) -> None:
        """Start."""
        self.times_: list[float] = []

    def begin_step(self, step: Step) -> None:
        """Record the time."""
        self.times_.append(time.perf_counter())


def a_step(times: list[float]) -> float:
    """Return microseconds per step from the start times of steps."""
    return (times[-1] - times[BEFORE]) / (len(times) - 1 - BEFORE) * 1e6


def by_hand(mixed: bool) -> Callable[[], float]:
    """Return the loop over a ``DataLoader``, on request with the arithmetic of the plugins."""

    def run() -> float:
        model = network()
        loader = DataLoader(TensorDataset(*samples()), batch_size=BATCH, shuffle=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        parameters = list(model.parameters())
        weights = [p for p in parameters if p.ndim > 1]
        average = [p.detach().clone() for p in parameters]
        hidden: list[Tensor] = []
        if mixed:
            for layer in model:
                if isinstance(layer, nn.ReLU):
                    layer.register_forward_hook(lambda _module, _inputs, h: hidden.append(h))
        times = []
        for x, y in loader:
            times.append(time.perf_counter())
            optimizer.zero_grad()
            hidden.clear()
            loss = cross_entropy(model(x + 0.1 * torch.randn_like(x) if mixed else x), y)
            if mixed:
                loss = loss + 1e-4 * sum(h.abs().sum() for h in hidden) / len(x)
            loss.backward()
            if mixed:
                with torch.no_grad():
                    torch._foreach_add_([w.grad for w in weights], weights, alpha=1e-4)
                nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if mixed:
                with torch.no_grad():
                    torch._foreach_lerp_(average, parameters, 0.01)
        return a_step(times)

    return run


def ours(plugins: Callable[[], list[Plugin]], logs: Path) -> Callable[[], float]:
    """Return a fit with TensorBoard, checkpoints, progress bar, loss and accuracy, as it is commonly run."""

    def run() -> float:
        x, y = samples()
        clock = Clock()
        recipe = Recipe(
            network(),
            Data((x, y), (x[:BATCH], y[:BATCH]), batch_size=BATCH),
            cross_entropy,
            {"accuracy": MulticlassAccuracy(10, average="micro")},
            plugins=[clock, *plugins()],
            trainer={"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 20, "callbacks": [Bar()]},
        )
        fitted(recipe, logs)
        return a_step(clock.times_)

    return run


def rows(rounds: int = 8) -> list[Row]:
    """Return the rows; torch's number of threads is the caller's."""
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        contenders = {
            "a DataLoader loop": by_hand(mixed=False),
            "conv": ours(lambda: [Optimizer("AdamW", lr=1e-3)], logs),
            "a DataLoader loop with them": by_hand(mixed=True),
            "conv, cocktail": ours(lambda: cocktail(False), logs),
        }
        times = in_turn(contenders, rounds)
    goals = {
        ("conv", "a DataLoader loop"): "<= 1.02",
        ("conv, cocktail", "a DataLoader loop with them"): "<= 1.03",
    }
    return compared(times, goals)
