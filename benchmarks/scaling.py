"""Growth of the time of a step with parameters, tensors, plugins and observed layers, with slopes."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from framework import Core, Data, Plugin, Recipe, Step, fit
from plugins.activation_sparsity import ActivationSparsity
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.weight_average import WeightAverage


class Sum(nn.Module):
    """A loss on parameters alone, so that nothing but the work on weights grows.

    Args:
        count: number of tensors.
        size: numbers in each.
    """

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(size)) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        """Return one number."""
        return x.sum() + torch.stack([weight[0] for weight in self.weights]).sum()


class Idle(Plugin):
    """A plugin that answers at three hook points and does nothing."""

    def begin_step(self, step: Step) -> None:
        """Do nothing."""

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Do nothing."""
        return batch

    def after_update(self, step: Step) -> None:
        """Do nothing."""


class Clock(Plugin):
    """Record the time at the start of each step."""

    def attach(self, core: Core) -> None:
        """Start."""
        self.times_: list[float] = []

    def begin_step(self, step: Step) -> None:
        """Record the time."""
        self.times_.append(time.perf_counter())


def microseconds(model: nn.Module, plugins: Sequence[Plugin], steps: int) -> float:
    """Return the median time of a step, in microseconds."""
    clock = Clock()
    x = (torch.randn(steps * 4, 16), torch.zeros(steps * 4))
    recipe = Recipe(
        model,
        Data(x, batch_size=4),
        lambda prediction, target: prediction.mean(),
        plugins=[clock, *plugins],
        trainer={"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    )
    fit(recipe, logs=None)
    gaps = [b - a for a, b in itertools.pairwise(clock.times_[len(clock.times_) // 4 :])]
    return statistics.median(gaps) * 1e6


def by_hand(model: nn.Module, steps: int) -> float:
    """Return the median time of a step of a handwritten loop that does what :func:`terms` does."""
    weights = list(model.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.0, fused=True)
    average = [weight.detach().clone() for weight in weights]
    times = []
    for x in torch.randn(steps * 4, 16).split(4):
        times.append(time.perf_counter())
        optimizer.zero_grad()
        model(x).mean().backward()
        with torch.no_grad():
            torch._foreach_add_([w.grad for w in weights], weights, alpha=1e-4)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 0.01)
    return statistics.median(b - a for a, b in itertools.pairwise(times[len(times) // 4 :])) * 1e6


def network(layers: int) -> nn.Sequential:
    """Return a network with a number of ReLU layers."""
    return nn.Sequential(*(layer for _ in range(layers) for layer in (nn.Linear(16, 16), nn.ReLU())))


def terms() -> list[Plugin]:
    """Return plugins that work on each weight: L2, an average, SGD."""
    return [NormPenalty(1e-4, weights="*", biases=True), WeightAverage(decay=0.99), Optimizer("SGD", lr=0.0)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of log time over log size between the last two points: 1 is linear."""
    (x0, y0), (x1, y1) = points[-2:]
    return math.log(y1 / y0) / math.log(x1 / x0)


def rows(largest: int = 10**8) -> dict[str, list[tuple[float, float]]]:
    """Return ``(size, microseconds)`` by what grows.

    Args:
        largest: parameters at most.
    """
    weights = [10**n for n in range(3, 9) if 10**n <= largest]
    grows: dict[str, tuple[list[int], Callable[[int], float]]] = {
        "parameters (8 tensors; L2, EMA, SGD)": (
            weights,
            lambda n: microseconds(Sum(8, n // 8), terms(), max(8, min(300, 10**8 // n))),
        ),
        "parameters, the same in a loop by hand": (
            weights,
            lambda n: by_hand(Sum(8, n // 8), max(8, min(300, 10**8 // n))),
        ),
        "tensors (64 numbers each; L2, EMA, SGD)": (
            [10, 100, 500, 1000, 2000],
            lambda n: microseconds(Sum(n, 64), terms(), 60),
        ),
        "tensors, the same in a loop by hand": ([10, 100, 500, 1000, 2000], lambda n: by_hand(Sum(n, 64), 60)),
        "plugins (at three hook points, idle)": (
            [1, 5, 10, 20],
            lambda n: microseconds(network(2), [Idle(name=f"idle_{i}") for i in range(n)], 400),
        ),
        "layers observed (activation L1)": (
            [2, 10, 50, 100],
            lambda n: microseconds(network(n), [ActivationSparsity(1e-4, "ReLU")], 100),
        ),
        "layers, nobody observes": ([2, 10, 50, 100], lambda n: microseconds(network(n), [], 100)),
    }
    return {what: [(float(n), time_of(n)) for n in sizes] for what, (sizes, time_of) in grows.items()}


def show(found: dict[str, list[tuple[float, float]]]) -> None:
    """Print the curves and their slopes."""
    for what, points in found.items():
        listed = ", ".join(f"{n:,.0f}: {us:,.0f} us" for n, us in points)
        print(f"  {what}: {listed}; slope at the end {slope(points):.2f}")
