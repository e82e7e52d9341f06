"""Declared settings against those that `tune` finds: test metrics of a recipe, over seeds, and the time of the search.

    python -m benchmarks.search recipes/digits.py --metric accuracy
    python -m benchmarks.search recipes/tabular.py --over name=Australian,kc1 --metric balanced_accuracy

Two studies: the sampler of ``tune --cocktail`` with few trials, and random draws from the same space with many. Each
study's best trial by validation is trained again with each seed and the checkpoint of its best epoch tested, as is the
recipe as it stands. Studies go on, and runs that ended are not repeated, if the command is given again with the same
``--logs``.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.recipes import QUIET, pairs, spread
from framework import test as evaluate
from framework.checkpoint.folder import RunFolder
from framework.tune import tune
from framework.tune.results import Study
from framework.tune.trial import ended_run


def tested(study: Study, chosen: Mapping[str, Any], seeds: int, tag: str, logs: Path) -> list[float]:
    """Return a metric on the test part of runs with one choice of settings, one of each seed."""
    found = []
    for seed in range(seeds):
        own = logs / f"seed_{seed}"
        ended_run(study.order, own, seed, study.order.overrides(chosen))
        folder = RunFolder.all(own, study.order.spec({}).name)[0].path
        found.append(evaluate(study.order.factory(), run=folder, ckpt="best", trainer=QUIET)[tag])
    return found


def row(recipe: Path, parameters: Mapping[str, Any], order: argparse.Namespace) -> str:
    """Return a line of the table for one recipe with its parameters."""
    title = "-".join(str(value) for name, value in parameters.items() if name == order.over.partition("=")[0])
    label = title or recipe.stem
    sampled = {"tpe": order.trials, "random": order.random}
    cells, minutes = [], []
    for sampler, trials in sampled.items():
        given: Any = {"parameters": parameters, "sampler": sampler, "trials": trials, "name": f"{label}-{sampler}"}
        study = tune(recipe, cocktail=True, logs=order.logs, **given)
        best, tag = study.best, f"test/{order.metric}"
        assert best is not None
        if not cells:
            cells.append(spread(tested(study, {}, order.seeds, tag, order.logs / "ends" / label / "declared")))
        ends = order.logs / "ends" / label / f"{sampler}-{best.number}"
        cells.append(spread(tested(study, study.chosen(best), order.seeds, tag, ends)))
        minutes.append(sum(one.user_attrs.get("seconds", 0.0) for one in study.trials) / 60)
        declared = study.trials[0].user_attrs["seconds"] / 60
    return f"| {label} | {' | '.join(cells)} | {declared:.1f} | {' | '.join(f'{one:.0f}' for one in minutes)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each value of the parameter ``--over``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path, help="recipe file")
    parser.add_argument("--metric", required=True, help="metric of the test part, as balanced_accuracy or loss")
    parser.add_argument("--over", default="", metavar="NAME=A,B,C", help="parameter of the recipe, a row each value")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="parameter of the recipe")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each choice of settings, with seeds from 0")
    parser.add_argument("--trials", type=int, default=32, help="trials of `tune --cocktail`")
    parser.add_argument("--random", type=int, default=100, help="trials at random")
    parser.add_argument("--logs", type=Path, default=Path("lightning_logs/search"), help="folder of studies and runs")
    order = parser.parse_args(arguments)
    torch.set_num_threads(1)
    over, _, values = order.over.partition("=")
    print(
        f"| {order.metric} | declared | `tune --cocktail`, {order.trials} trials | {order.random} random trials"
        " | minutes: a run | `tune` | random |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in values.split(",") if over else [None]:
            given = {**pairs(order.set), **({} if value is None else {over: yaml.safe_load(value)})}
            print(row(order.recipe, given, order), flush=True)


if __name__ == "__main__":
    main()
