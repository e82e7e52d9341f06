"""The effect of plugins: test metrics of a recipe without them, with them, and with each left out, over seeds.

    python -m benchmarks.recipes recipes/digits.py --seeds 3
    python -m benchmarks.recipes recipes/tabular.py --over name=Australian,anneal,kc1 --set width=128

Every arm trains the same network on the same data with the same seeds, and its best checkpoint by validation is tested.
A Markdown table goes to standard output, each run to a JSON file. Plugins that do not regularize (``--keep``) stay in
the arm without plugins, so that the comparison is about regularization.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from framework import fit
from framework import test as evaluate
from framework.recipe.edits import name_of
from framework.recipe.load import build_recipe, load_recipe

QUIET = {"enable_progress_bar": False}


def arms(plugins: Sequence[str], keep: Sequence[str], *, leave_out: bool) -> dict[str, list[str]]:
    """Return for each arm's title the plugins that it leaves out.

    Example:
        >>> arms(["mixup", "optimizer"], keep=["optimizer"], leave_out=False)
        {'without plugins': ['mixup'], 'with plugins': []}
    """
    chosen = {"without plugins": [name for name in plugins if name not in keep], "with plugins": []}
    return chosen | ({f"without {name}": [name] for name in plugins} if leave_out else {})


def measure(
    recipe: Path, seed: int, without: Sequence[str], parameters: Mapping[str, Any], trainer: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the test metrics of one run's best checkpoint, and how long it trained."""
    with tempfile.TemporaryDirectory() as logs:
        began = time.perf_counter()
        run = fit(recipe, seed=seed, parameters=parameters, trainer={**QUIET, **trainer}, without=without, logs=logs)
        seconds = time.perf_counter() - began
        metrics = evaluate(recipe, run=run.folder, ckpt="best", trainer=QUIET)
    return {**metrics, "seconds": seconds, "best_epoch": run.best_epoch, "epochs": run.epochs}


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Return mean and standard deviation as text.

    Args:
        values: at least one.
        digits: digits after the point.

    Example:
        >>> spread([1.0, 2.0, 3.0]), spread([0.25], 1)
        ('2.0000 ± 1.0000', '0.2')
    """
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the runs as a Markdown table, one row per arm; the spread is over seeds, of means over the rest."""
    metrics = [name for name in runs[0] if name.startswith("test/")]
    lines = [f"| | {' | '.join(metrics)} | seconds a run |", "|---" * (len(metrics) + 2) + "|"]
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        seeds = dict.fromkeys(run["seed"] for run in own)
        means = {m: [statistics.fmean(run[m] for run in own if run["seed"] == seed) for seed in seeds] for m in metrics}
        seconds = statistics.fmean(run["seconds"] for run in own)
        lines.append(f"| {arm} | {' | '.join(spread(means[m]) for m in metrics)} | {seconds:.1f} |")
    return "\n".join(lines)


def pairs(texts: Sequence[str]) -> dict[str, Any]:
    """Return ``name=value`` texts as a mapping, values read as YAML.

    Example:
        >>> pairs(["epochs=3", "name=kc1"])
        {'epochs': 3, 'name': 'kc1'}
    """
    return {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in texts)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the arms and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path, help="recipe file")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="parameter of the recipe")
    parser.add_argument("--over", metavar="NAME=A,B,C", help="parameter of the recipe whose values are averaged over")
    parser.add_argument("--trainer", action="append", default=[], metavar="NAME=VALUE", help="option of the Trainer")
    parser.add_argument("--keep", default="optimizer,schedule", help="plugins that stay in the arm without plugins")
    parser.add_argument("--leave-out", action="store_true", help="one more arm for each plugin left out")
    parser.add_argument("--json", type=Path, help="file for the single runs")
    order = parser.parse_args(arguments)

    given, trainer = pairs(order.set), pairs(order.trainer)
    over, _, values = (order.over or "").partition("=")
    settings = [{**given, over: yaml.safe_load(value)} for value in values.split(",")] if over else [given]
    plugins = [name_of(one) for one in build_recipe(load_recipe(order.recipe), settings[0]).plugins]
    runs = []
    for arm, without in arms(plugins, order.keep.split(","), leave_out=order.leave_out).items():
        for parameters in settings:
            for seed in range(order.seeds):
                result = measure(order.recipe, seed, without, parameters, trainer)
                runs.append({"arm": arm, "seed": seed, "parameters": parameters, **result})
                print(runs[-1], file=sys.stderr, flush=True)
                if order.json is not None:
                    order.json.write_text(json.dumps(runs, indent=1), encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
