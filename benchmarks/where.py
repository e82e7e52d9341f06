"""Breakdown of the time of a step of the small network: arithmetic, Lightning, this framework."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.trainer import Trainer

import framework.engine.gradient
from benchmarks.step import network, ours
from framework import Plugin
from framework.checkpoint.saving import Checkpoints
from framework.data import TrainLoader
from framework.engine.core import Core
from framework.engine.gradient import Gradient
from framework.engine.loop import EpochLoop
from framework.engine.recorder import Recorder
from framework.engine.stepper import Stepper
from framework.engine.update import Update
from framework.report.dashboard import Dashboard
from framework.report.progress import Bar
from plugins.optimizer import Optimizer

ARITHMETIC, LIGHTNING, OURS, WRITTEN = "arithmetic", "Lightning", "ours", "what is written"

# the functions timed: own time, without that of listed functions which they call
PLACES: list[tuple[Any, str, str, str]] = [
    (Trainer, "fit", LIGHTNING, "beginning and end of the run"),
    (_FitLoop, "run", LIGHTNING, "beginning and end of epochs"),
    (EpochLoop, "run", LIGHTNING, "the loop over batches, in its place"),
    (TrainLoader, "__iter__", ARITHMETIC, "batch by index"),
    (type(network()), "forward", ARITHMETIC, "forward"),
    (framework.engine.gradient, "_backward", ARITHMETIC, "backward"),
    (Stepper, "__call__", ARITHMETIC, "the optimizer's step"),
    (Core, "training_step", OURS, "training_step"),
    (Update, "__call__", OURS, "the update around it"),
    (Gradient, "__call__", OURS, "the gradient around it"),
    (Core, "compute_loss", OURS, "compute_loss, with the loss itself"),
    (Recorder, "add", OURS, "J and terms kept"),
    (Recorder, "see", OURS, "predictions kept"),
    (Recorder, "_show", ARITHMETIC, "training metrics"),
    (Recorder, "write_step", WRITTEN, "curves"),
    (Recorder, "end_epoch", WRITTEN, "means and metrics of epochs"),
    (Bar, "on_train_batch_end", WRITTEN, "progress bar"),
    (Checkpoints, "on_train_batch_end", WRITTEN, "checkpoints: is one due"),
    (Checkpoints, "_save", WRITTEN, "checkpoints"),
    (Dashboard, "on_train_start", WRITTEN, "weights and hyperparameters"),
    (Dashboard, "on_train_epoch_start", WRITTEN, "weights of some epochs"),
]


class Stopwatch:
    """Attribute the time to the innermost function that is running.

    Attributes:
        seconds: time by group and function.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = {}
        self._open: list[tuple[str, str]] = []
        self._since = time.perf_counter()

    def begin(self, place: tuple[str, str]) -> None:
        """Enter a function."""
        self._turn()
        self._open.append(place)

    def end(self) -> None:
        """Leave the function."""
        self._turn()
        self._open.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    def timed(self, call: Callable[..., Any], place: tuple[str, str]) -> Callable[..., Any]:
        """Return a function that is timed."""

        def run(*args: Any, **options: Any) -> Any:
            self.begin(place)
            try:
                return call(*args, **options)
            finally:
                self.end()

        return run

    def iterated(self, call: Callable[..., Iterator[Any]], place: tuple[str, str]) -> Callable[..., Iterator[Any]]:
        """Return a generator function that is timed per item."""

        def run(*args: Any) -> Iterator[Any]:
            items = call(*args)
            while True:
                self.begin(place)
                try:
                    item = next(items, None)
                finally:
                    self.end()
                if item is None:
                    return
                yield item

        return run


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Time all listed functions."""
    with ExitStack() as stack:
        for owner, name, *place in PLACES:
            wrap = watch.iterated if name == "__iter__" else watch.timed
            stack.enter_context(patch.object(owner, name, wrap(getattr(owner, name), (place[0], place[1]))))
        yield


def rows(rounds: int = 5, plugins: Callable[[], list[Plugin]] | None = None) -> dict[str, dict[str, float]]:
    """Return microseconds per step by group and function, the fastest of some runs.

    Args:
        rounds: number of runs, after one that does not count.
        plugins: the plugins; an optimizer alone unless given.
    """
    least: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = ours(plugins or (lambda: [Optimizer("AdamW", lr=1e-3)]), Path(folder))
        run()
        for _ in range(rounds):
            watch = Stopwatch()
            with watched(watch):
                steps = run()
            for place, seconds in watch.seconds.items():
                least[place] = min(least.get(place, float("inf")), seconds / steps * 1e6)
    table: dict[str, dict[str, float]] = {}
    for (group, place), spent in least.items():
        table.setdefault(group, {})[place] = spent
    return table


def show(table: dict[str, dict[str, float]]) -> None:
    """Print the table, the largest first."""
    for group, places in sorted(table.items(), key=lambda item: -sum(item[1].values())):
        print(f"  {group:<40} {sum(places.values()):7.1f}")
        for place, spent in sorted(places.items(), key=lambda item: -item[1]):
            print(f"    {place:<38} {spent:7.1f}")
