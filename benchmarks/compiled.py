"""The gain from ``torch.compile`` on a convolutional network, with plugins and without, and how often it compiles."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks.scaling import Clock
from framework import Data, Plugin, Recipe, fit
from plugins.activation_sparsity import ActivationSparsity
from plugins.hidden_noise import HiddenNoise
from plugins.input_noise import InputNoise
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.strength_schedule import StrengthSchedule
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise

STEPS, BATCH = 90, 16


def network() -> nn.Sequential:
    """Return three convolutions with batch norm."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def cocktail() -> list[Plugin]:
    """Return plugins on inputs, hidden layers, activations, weights, gradients and averages, one of them scheduled."""
    return [
        StrengthSchedule("hidden_noise.std", start=0.0, until=0.5),
        InputNoise(0.1),
        HiddenNoise("ReLU", std=0.1),
        ActivationSparsity(1e-5, "ReLU"),
        NormPenalty(1e-4),
        WeightNoise(0.001),
        WeightAverage(decay=0.99),
    ]


def by_hand(compiled: bool) -> float:
    """Return the median time of a step of a handwritten loop, without plugins."""
    torch._dynamo.reset()
    model = network()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    times = []
    for x, y in zip(*(part.split(BATCH) for part in samples()), strict=True):
        times.append(time.perf_counter())
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(x), y).backward()
        optimizer.step()
    return median(times)


def samples() -> tuple[Tensor, Tensor]:
    """Return random images and classes."""
    return torch.randn(STEPS * BATCH, 3, 16, 16), torch.randint(10, (STEPS * BATCH,))


def median(times: list[float]) -> float:
    """Return milliseconds per step from the start times of steps, without those that compiled."""
    late = times[STEPS // 3 :]
    return statistics.median(b - a for a, b in itertools.pairwise(late)) * 1e3


def ours(plugins: Callable[[], list[Plugin]], compiled: bool) -> float:
    """Return the median time of a step of a fit."""
    torch._dynamo.reset()
    clock = Clock()
    recipe = Recipe(
        network(),
        Data(samples(), batch_size=BATCH),
        nn.functional.cross_entropy,
        plugins=[clock, *plugins(), Optimizer("AdamW", lr=1e-3)],
        trainer={"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        compile=compiled,
    )
    fit(recipe, logs=None)
    return median(clock.times_)


def rows(rounds: int = 6) -> list[dict[str, Any]]:
    """Return rows for the handwritten loop and for a fit without and with plugins, run in turn.

    Args:
        rounds: how often each trains, after one round that does not count, in which torch fills its cache.
    """
    contenders: dict[str, Callable[[bool], float]] = {
        "loop by hand": by_hand,
        "fit": lambda compiled: ours(list, compiled),
        "fit with plugins": lambda compiled: ours(cocktail, compiled),
    }
    spent: dict[tuple[str, bool], list[float]] = {(name, way): [] for name in contenders for way in (False, True)}
    counted: dict[str, dict[str, int]] = {}
    for turn in range(rounds + 1):
        for (name, compiled), times in spent.items():
            counters.clear()
            taken = contenders[name](compiled)
            counted[name] = {"graphs": counters["stats"]["unique_graphs"], "breaks": len(counters["graph_break"])}
            if turn:
                times.append(taken)
    found = []
    for name in contenders:
        eager, fast = spent[name, False], spent[name, True]
        saved = statistics.median(one - other for one, other in zip(eager, fast, strict=True))
        medians = {"eager_ms": statistics.median(eager), "compiled_ms": statistics.median(fast), "saved_ms": saved}
        found.append({"name": name, **medians, **counted[name]})
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print the rows."""
    for row in found:
        print(
            f"  {row['name']:<16}  eager {row['eager_ms']:.2f} ms, compiled {row['compiled_ms']:.2f} ms, saved"
            f" {row['saved_ms']:+.2f} ms; {row['graphs']} graphs, {row['breaks']} breaks"
        )
