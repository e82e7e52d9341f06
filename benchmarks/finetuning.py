"""Eight ways to fine-tune: test accuracy of ``recipes/finetune.py`` by method and number of labels, over seeds.

    python -m benchmarks.finetuning runs.jsonl --seeds 3 --labels 1000,5000 --set data=DIR --set size=48

Each run appends a line to the file; runs that stand in it already are not repeated, so the command can be interrupted.
The checkpoint of the best epoch by validation loss is tested.
"""

from __future__ import annotations

import argparse
import json
import statistics
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recipes import measure, pairs, spread
from recipes.finetune import Method

RECIPE = Path(__file__).parents[1] / "recipes" / "finetune.py"
METHODS: tuple[str, ...] = typing.get_args(Method)


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: a row per method; per number of labels, accuracy in percent and minutes a run."""
    sizes = sorted({run["labels"] for run in runs})
    head = " | ".join(f"{size} labels, % | minutes" for size in sizes)
    lines = [f"| method | {head} |", "|---" * (2 * len(sizes) + 1) + "|"]
    for method in METHODS:
        cells = []
        for size in sizes:
            own = [run for run in runs if (run["method"], run["labels"]) == (method, size)]
            percent = spread([100 * run["test/accuracy"] for run in own], 1) if own else ""
            minutes = f"{statistics.fmean(run['seconds'] for run in own) / 60:.1f}" if own else ""
            cells += [percent, minutes]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing in the file, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetuning", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("file", type=Path, help="file for the single runs, one JSON object a line")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--labels", default="1000,5000", help="numbers of labelled images")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, all by default")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="parameter of the recipe")
    order = parser.parse_args(arguments)
    given = pairs(order.set)
    text = order.file.read_text(encoding="utf-8") if order.file.exists() else ""
    runs = [json.loads(line) for line in text.splitlines()]
    done = {(run["method"], run["labels"], run["seed"]) for run in runs}
    for labels in map(int, order.labels.split(",")):
        for seed in range(order.seeds):
            for method in order.methods.split(","):
                if (method, labels, seed) in done:
                    continue
                result = measure(RECIPE, seed, [], {**given, "method": method, "labels": labels}, {})
                runs.append({"method": method, "labels": labels, "seed": seed, **result})
                with order.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
