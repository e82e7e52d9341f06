"""Memory, open files and disk over a long run with all bundled plugins: ``python -m tests.growth --steps 20000``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from framework import fit
from framework.report.table import table
from tests.soak import Killer, recipe


class Sample(NamedTuple):
    """What the process holds after so many steps: MiB of memory, open files, KiB of a checkpoint, checkpoints."""

    step: int
    memory: float
    files: int
    disk: float
    checkpoints: int


class Watch(pl.Callback):
    """Takes a sample every so many steps."""

    def __init__(self, logs: Path, every: int) -> None:
        self.logs, self.every = logs, every
        self.samples: list[Sample] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            kept = [path.stat().st_size for path in self.logs.rglob("*.ckpt")]
            disk = min(kept, default=0)  # one within an epoch also holds predictions that no metric has counted yet
            files = len(list(Path("/proc/self/fd").iterdir()))
            self.samples.append(Sample(trainer.global_step, resident / 2**20, files, disk / 2**10, len(kept)))


def watch(steps: int, every: int) -> list[Sample]:
    """Train for so many steps and return the samples."""
    with tempfile.TemporaryDirectory() as logs:
        watch = Watch(Path(logs), every)
        fit(
            lambda: recipe(0, Killer("never"), "sam"),
            logs=logs,
            without=["early_stopping"],
            checkpoint_steps=100,
            trainer={
                "max_steps": steps,
                "max_epochs": -1,
                "accelerator": "cpu",
                "enable_progress_bar": False,
                "callbacks": [watch],
            },
        )
    return watch.samples


def main() -> int:
    """Print the samples."""
    parser = argparse.ArgumentParser(prog="python -m tests.growth", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="optimizer steps")
    given = parser.parse_args()
    rows = [
        [f"{s.step:,}", f"{s.memory:.1f}", f"{s.files}", f"{s.disk:.0f}", f"{s.checkpoints}"]
        for s in watch(given.steps, max(given.steps // 20, 1))
    ]
    print(table(rows, ["step", "memory (MiB)", "open files", "checkpoints (KiB)", "files"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
