"""What ``torch.compile`` brings on a convolutional network, with plugins and without, and how often it compiles."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
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

STEPS = 60


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


def milliseconds(plugins: Callable[[], list[Plugin]], *, compiled: bool) -> tuple[float, dict[str, int]]:
    """Return the median time of a step once all is compiled, and counts of graphs and graph breaks."""
    torch._dynamo.reset()
    counters.clear()
    clock = Clock()
    data = Data((torch.randn(STEPS * 16, 3, 16, 16), torch.randint(10, (STEPS * 16,))), batch_size=16)
    options: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    recipe = Recipe(
        network(),
        data,
        nn.functional.cross_entropy,
        plugins=[clock, *plugins(), Optimizer("AdamW", lr=1e-3)],
        trainer=options,
        compile=compiled,
    )
    fit(recipe, logs=None)
    late = clock.times_[STEPS // 2 :]
    gaps = [b - a for a, b in itertools.pairwise(late)]
    counted = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
    return statistics.median(gaps) * 1e3, counted


def rows() -> list[dict[str, Any]]:
    """Return a row each without and with plugins: eager and compiled time, gain, graphs, breaks."""
    found = []
    for name, plugins in (("bare", list), ("with plugins", cocktail)):
        eager, _ = milliseconds(plugins, compiled=False)
        fast, counted = milliseconds(plugins, compiled=True)
        found.append({"name": name, "eager_ms": eager, "compiled_ms": fast, "saved_ms": eager - fast, **counted})
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print the rows."""
    for row in found:
        print(
            f"  {row['name']:<12}  eager {row['eager_ms']:.2f} ms, compiled {row['compiled_ms']:.2f} ms, saved"
            f" {row['saved_ms']:.2f} ms; {row['graphs']} graphs, {row['breaks']} breaks"
        )
