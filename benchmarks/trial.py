"""The cost of a short fit, as a study makes many of them, over handwritten loops."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.measure import alternate
from benchmarks.step import compared, fitted, network
from benchmarks.versus import Row
from framework import Data, Recipe
from framework.report.progress import Bar
from plugins.optimizer import Optimizer

BATCH, EPOCHS = 32, 100
ROWS = {200: 10, 1000: 5, 10000: 2}  # samples, and rounds
Pair = tuple[Tensor, Tensor]


def samples(count: int) -> tuple[Pair, Pair]:
    """Return random inputs of 64 numbers and classes that can be learned: a fifth of them is for validation."""
    generator = torch.Generator().manual_seed(0)
    x, directions = torch.randn(count, 64, generator=generator), torch.randn(64, 10, generator=generator)
    y = (x @ directions).argmax(1)
    cut = count * 4 // 5
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def batches(part: Pair, shuffle: bool, lean: bool) -> Callable[[], Any]:
    """Return a function that makes an epoch's batches: by tensor indexing, or by a ``DataLoader``."""
    if not lean:
        loader = DataLoader(TensorDataset(*part), batch_size=BATCH, shuffle=shuffle)
        return lambda: loader

    def epoch() -> Any:
        x, y = part
        if not shuffle:
            return zip(x.split(BATCH), y.split(BATCH), strict=True)
        order = torch.randperm(len(x))
        return ((x[chosen], y[chosen]) for chosen in order.split(BATCH))

    return epoch


def by_hand(count: int, lean: bool) -> Callable[[], int]:
    """Return a loop that validates each epoch, lists loss and accuracy of both parts, and keeps the best weights."""

    def run() -> int:
        train, val = samples(count)
        model, make, held = network(), batches(train, True, lean), batches(val, False, lean)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
        curves: list[dict[str, float]] = []
        least, best = float("inf"), {}
        for _ in range(EPOCHS):
            sums = {"train": torch.zeros(3), "val": torch.zeros(3)}  # of losses, of right ones, of samples
            model.train()
            for x, y in make():
                optimizer.zero_grad()
                prediction = model(x)
                loss = cross_entropy(prediction, y)
                loss.backward()
                optimizer.step()
                add(sums["train"], loss.detach(), prediction.detach(), y)
            model.eval()
            with torch.no_grad():
                for x, y in held():
                    prediction = model(x)
                    add(sums["val"], cross_entropy(prediction, y), prediction, y)
            row: dict[str, float] = {}
            for part, total in sums.items():
                losses, right, number = total.tolist()
                row |= {f"{part}/loss": losses / number, f"{part}/accuracy": right / number}
            curves.append(row)
            if row["val/loss"] < least:
                least = row["val/loss"]
                best = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(best)
        return EPOCHS

    return run


def add(sums: Tensor, loss: Tensor, prediction: Tensor, target: Tensor) -> None:
    """Add a batch's loss, right predictions, and samples to their sums."""
    size = len(target)
    sums += torch.stack([loss * size, (prediction.argmax(1) == target).sum(), torch.tensor(float(size))])


def by_fit(count: int, logs: Path | None) -> Callable[[], int]:
    """Return a fit that does the same, with TensorBoard, checkpoints and progress bar, or with ``logs=None``."""

    def run() -> int:
        train, val = samples(count)
        recipe = Recipe(
            network(),
            Data(train, val, batch_size=BATCH),
            cross_entropy,
            {"accuracy": MulticlassAccuracy(10, average="micro")},
            plugins=[Optimizer("AdamW", lr=1e-3)],
            trainer={"max_epochs": EPOCHS, "accelerator": "cpu", "callbacks": [Bar()]},
        )
        fitted(recipe, logs)
        return EPOCHS

    return run


def rows() -> list[Row]:
    """Return the rows, in microseconds an epoch; the start of the fit is included."""
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for count, rounds in ROWS.items():
            ours = {"everything on": by_fit(count, Path(folder)), "logs=None": by_fit(count, None)}
            hand = {"a DataLoader loop": by_hand(count, False), "the leanest loop": by_hand(count, True)}
            times = alternate({**ours, **hand}, rounds)
            named = {f"{count:,} rows, {name}" if name in ours else name: spent for name, spent in times.items()}
            pairs = {(f"{count:,} rows, {one}", other): "<= 1.15" for one in ours for other in hand}
            found += compared(named, pairs)
    return found
