"""How often ``compare`` claims a difference: between equal settings, and for a planted difference.

    python -m benchmarks.claims --comparisons 200 --pairs 8

A pool of short fits of scikit-learn's digits is trained, one for each seed; equal settings are compared by drawing
disjoint seeds from it, so that runs occur in several comparisons. The planted difference is one of the validation
loss: a setting whose figures are those of the pool, shifted by a share of their standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from framework import fit
from framework.tune.statistics import compare_pairs

RECIPE = Path(__file__).parents[1] / "recipes" / "digits.py"


def pool(seeds: int, epochs: int, file: Path | None) -> list[float]:
    """Return the best validation loss for each seed; those in the file are not trained again."""
    known = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else []
    for seed in range(len(known), seeds):
        trainer = {"enable_progress_bar": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = fit(RECIPE, seed=seed, parameters={"epochs": epochs}, trainer=trainer, logs=None)
        known.append(run.metrics["val/loss"])
        if file is not None:
            file.write_text(json.dumps(known), encoding="utf-8")
    return known[:seeds]


def claims(figures: Sequence[float], comparisons: int, pairs: int, shift: float) -> list[bool]:
    """Return for each comparison whether a difference was claimed.

    Args:
        figures: the pool.
        comparisons: number of comparisons.
        pairs: number of pairs of each.
        shift: planted difference.
    """
    draw = random.Random(0)
    found = []
    for _ in range(comparisons):
        chosen = draw.sample(list(figures), 2 * pairs)
        first, second = chosen[:pairs], chosen[pairs:]
        gains = [b - a + shift for a, b in zip(first, second, strict=True)]
        found.append(compare_pairs({"one": gains}, higher_is_better=True)["one"].told_apart)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the share of false claims and the power."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=8, help="seeds of each of the two settings")
    parser.add_argument("--seeds", type=int, default=240, help="size of the pool")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--file", type=Path, help="file for the pool, to go on with it")
    order = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = pool(order.seeds, order.epochs, order.file)
    spread = statistics.stdev(figures)
    print(f"pool of {len(figures)} fits: {statistics.fmean(figures):.4f} ± {spread:.4f}\n")
    print("| planted difference | pairs | claimed |\n|---|---|---|")
    for shift in (0.0, 0.5, 1.0, 2.0):
        share = statistics.fmean(claims(figures, order.comparisons, order.pairs, shift * spread))
        what = "none (A/A)" if shift == 0 else f"{shift:g} standard deviations of a run"
        print(f"| {what} | {order.pairs} | {share:.1%} of {order.comparisons} |")


if __name__ == "__main__":
    main()
