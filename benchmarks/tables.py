"""`recipes/tabular.py` on several tables: plain, default, with encoded numbers, and the mean of the last two.

    python -m benchmarks.tables runs.jsonl --data DIR

Balanced accuracy on the test part of the best epoch by validation loss. Plain is the network without dropout, mixup and
weight decay. Each table and split appends a line to the file; those that stand in it are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.recipes import QUIET
from framework import ensemble, fit
from framework import test as evaluate

RECIPE = Path(__file__).parents[1] / "recipes" / "tabular.py"
SETS = "Australian,anneal,blood-transfusion,cnae-9,kc1,mfeat-factors,segment,sylvine"
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"dropout": 0.0, "mixup": 0.0, "weight_decay": 0.0},
    "default": {},
    "bins": {"bins": 12},
}
MEAN = "mean of default and bins"
TAG = "test/balanced_accuracy"


def measure(given: Mapping[str, Any]) -> dict[str, float]:
    """Return the balanced accuracy of each variant, and of the mean of two, on one table and split."""
    found, folders = {}, {}
    with tempfile.TemporaryDirectory() as logs:
        for name, changes in VARIANTS.items():
            run = fit(RECIPE, parameters={**given, **changes}, trainer=QUIET, logs=logs)
            assert run.folder is not None
            folders[name] = run.folder
            found[name] = evaluate(RECIPE, run=run.folder, trainer=QUIET)[TAG]
        found[MEAN] = ensemble(RECIPE, [folders["default"], folders["bins"]]).metrics[TAG]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing in the file, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="file for the single runs, one JSON object a line")
    parser.add_argument("--data", type=Path, help="data folder")
    parser.add_argument("--sets", default=SETS, help="names of tables")
    parser.add_argument("--splits", type=int, default=3, help="number of splits, from 0")
    order = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    text = order.file.read_text(encoding="utf-8") if order.file.exists() else ""
    runs = [json.loads(line) for line in text.splitlines()]
    done = {(run["name"], run["split"]) for run in runs}
    for split in range(order.splits):
        for name in [one for one in order.sets.split(",") if (one, split) not in done]:
            found = measure({"name": name, "data": order.data, "split": split})
            runs.append({"name": name, "split": split, **found})
            with order.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(runs[-1]) + "\n")
    columns = [*VARIANTS, MEAN]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    names = list(dict.fromkeys(run["name"] for run in runs))
    means = {name: [statistics.fmean(100 * r[c] for r in runs if r["name"] == name) for c in columns] for name in names}
    means["mean"] = [statistics.fmean(column) for column in zip(*means.values(), strict=True)]
    print("\n".join([*lines, *(f"| {name} | {' | '.join(f'{x:.2f}' for x in row)} |" for name, row in means.items())]))


if __name__ == "__main__":
    main()
