"""The cost of a training step on a small network, over handwritten loops."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.measure import alternate
from benchmarks.versus import Row
from framework import Data, Plugin, Recipe, fit
from framework.report.progress import Bar
from plugins.activation_sparsity import ActivationSparsity
from plugins.early_stopping import EarlyStopping
from plugins.input_noise import InputNoise
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise

BATCH, EPOCHS = 64, 20
Loop = Callable[[], int]


def samples() -> tuple[Tensor, Tensor]:
    """Return 6,400 random inputs of 64 numbers and their classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6400, 64, generator=generator), torch.randint(10, (6400,), generator=generator)


def network() -> nn.Sequential:
    """Return the network of the table: 64-128-10."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def batches(lean: bool) -> Callable[[], Any]:
    """Return a function that makes an epoch's batches: by tensor indexing, or by a ``DataLoader``."""
    x, y = samples()
    if not lean:
        loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
        return lambda: loader

    def epoch() -> Any:
        order = torch.randperm(len(x))
        for low in range(0, len(x), BATCH):
            chosen = order[low : low + BATCH]
            yield x[chosen], y[chosen]

    return epoch


def by_hand(lean: bool) -> Loop:
    """Return the plain loop."""

    def run() -> int:
        model, make = network(), batches(lean)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        steps = 0
        for _ in range(EPOCHS):
            for x, y in make():
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()
                steps += 1
        return steps

    return run


def cocktail_by_hand(lean: bool, weight_noise: bool) -> Loop:
    """Return the loop with the arithmetic of :func:`cocktail`, as lean as it can be written."""

    def run() -> int:
        model, make = network(), batches(lean)
        weights = [model[0].weight, model[2].weight]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        parameters = list(model.parameters())
        average = [p.detach().clone() for p in parameters]
        steps = 0
        for _ in range(EPOCHS):
            for x, y in make():
                optimizer.zero_grad()
                x = x + 0.1 * torch.randn_like(x)
                if weight_noise:
                    clean = [w.detach().clone() for w in weights]
                    with torch.no_grad():
                        torch._foreach_add_(weights, [torch.randn_like(w) for w in weights], alpha=0.01)
                hidden = torch.relu(model[0](x))
                loss = cross_entropy(model[2](hidden), y) + 1e-4 * hidden.abs().sum() / len(x)
                loss.backward()
                with torch.no_grad():
                    if weight_noise:
                        torch._foreach_copy_(weights, clean)
                    torch._foreach_add_([w.grad for w in weights], weights, alpha=1e-4)
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(average, parameters, 0.01)
                steps += 1
        return steps

    return run


def cocktail(weight_noise: bool) -> list[Plugin]:
    """Return L2, input noise, activation L1, EMA, early stopping and clipping, on request weight noise."""
    noise = [WeightNoise(0.01)] if weight_noise else []
    return [
        InputNoise(0.1),
        *noise,
        ActivationSparsity(1e-4, layers="ReLU"),
        NormPenalty(1e-4),
        WeightAverage(decay=0.99),
        Optimizer("AdamW", lr=1e-3, clip_norm=1.0),
        EarlyStopping(patience=1000),
    ]


class Idle(Plugin):
    """A plugin that answers at no hook point."""


def ours(plugins: Callable[[], list[Plugin]], logs: Path) -> Loop:
    """Return a fit with TensorBoard, checkpoints, progress bar, loss and accuracy, as it is commonly run."""

    def run() -> int:
        x, y = samples()
        recipe = Recipe(
            network(),
            Data((x, y), (x[:64], y[:64]), batch_size=BATCH),
            cross_entropy,
            {"accuracy": MulticlassAccuracy(10, average="micro")},
            plugins=plugins(),
            trainer={
                "max_epochs": EPOCHS,
                "accelerator": "cpu",
                "check_val_every_n_epoch": EPOCHS,
                "callbacks": [Bar()],
            },
        )
        return fitted(recipe, logs)

    return run


def fitted(recipe: Recipe, logs: Path | None) -> int:
    """Fit, with the progress bar written to nowhere, and return the number of steps."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        return fit(recipe, logs=logs).steps


def paired(name: str, ours: Sequence[float], reference: Sequence[float], goal: str) -> Row:
    """Return the row of two contenders that ran in turn.

    Args:
        name: what was measured.
        ours: microseconds, one number a round.
        reference: likewise, of what it is held against.
        goal: what the ratio is to keep to.
    """
    low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, reference, strict=True)], n=4)
    least = min(ours) / min(reference)
    return Row(name, statistics.median(ours), statistics.median(reference), middle, goal, (low, high), least)


def compared(times: Mapping[str, Sequence[float]], pairs: Mapping[tuple[str, str], str]) -> list[Row]:
    """Return a row for each ``(ours, reference)``, by name, with its goal."""
    return [paired(f"{one} / {other}", times[one], times[other], goal) for (one, other), goal in pairs.items()]


def rows(rounds: int = 12) -> list[Row]:
    """Return the rows of the small network; torch's number of threads is the caller's."""
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        plain = lambda: [Optimizer("AdamW", lr=1e-3)]  # noqa: E731
        contenders = {
            "the leanest loop": by_hand(lean=True),
            "a DataLoader loop": by_hand(lean=False),
            "tiny": ours(plain, logs),
            "tiny with 10 plugins that answer nowhere": ours(
                lambda: [*plain(), *(Idle(name=f"idle_{place}") for place in range(10))], logs
            ),
            "the leanest loop with them": cocktail_by_hand(lean=True, weight_noise=False),
            "a DataLoader loop with them": cocktail_by_hand(lean=False, weight_noise=False),
            "cocktail": ours(lambda: cocktail(False), logs),
            "the leanest loop with them and noise": cocktail_by_hand(lean=True, weight_noise=True),
            "a DataLoader loop with them and noise": cocktail_by_hand(lean=False, weight_noise=True),
            "cocktail and weight noise": ours(lambda: cocktail(True), logs),
        }
        times = alternate(contenders, rounds)
    return compared(
        times,
        {
            ("tiny", "a DataLoader loop"): "<= 1.0",
            ("tiny", "the leanest loop"): "<= 1.7, 1.3 tried for",
            ("tiny with 10 plugins that answer nowhere", "tiny"): "not measurable",
            ("cocktail", "a DataLoader loop with them"): "<= 1.0",
            ("cocktail", "the leanest loop with them"): "<= 1.5",
            ("cocktail and weight noise", "a DataLoader loop with them and noise"): "<= 1.0",
            ("cocktail and weight noise", "the leanest loop with them and noise"): "<= 1.5",
        },
    )
