"""Time to load a batch of a data set in memory, over tensor indexing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from torch.utils.data import DataLoader, TensorDataset

from benchmarks.measure import alternate
from benchmarks.step import BATCH, Loop, batches, compared, samples
from benchmarks.versus import Row
from framework import Data


def drained(make: Callable[[], Iterable[object]]) -> Loop:
    """Return a function that consumes all batches of ten epochs."""

    def run() -> int:
        for _ in range(10):
            deque(make(), maxlen=0)
        return 10 * len(samples_) // BATCH

    samples_ = samples()[0]
    return run


def rows(rounds: int = 20) -> list[Row]:
    """Return the rows; torch's number of threads is the caller's."""
    loader = Data(samples(), batch_size=BATCH).train_loader(seed=0)
    torchs = DataLoader(TensorDataset(*samples()), batch_size=BATCH, shuffle=True)
    contenders = {
        "a batch": drained(lambda: loader),
        "tensor indexing": drained(batches(lean=True)),
        "a batch of a DataLoader": drained(lambda: torchs),
    }
    goals = {("a batch", "tensor indexing"): "<= 2", ("a batch of a DataLoader", "tensor indexing"): "for comparison"}
    return compared(alternate(contenders, rounds), goals)
