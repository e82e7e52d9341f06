"""``ablate``: what each plugin of a recipe is good for, by leaving it out and by using it alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from framework.errors import UserError, did_you_mean
from framework.plugin.plugin import Plugin
from framework.recipe.edits import name_of
from framework.recipe.recipe import Recipe
from framework.recipe.spec import Additions, Source
from framework.tune.comparison import higher_of, report, row_of
from framework.tune.jobs import Job, ended, error_of, forget_errors, main, work
from framework.tune.order import Order
from framework.tune.runs import Trained
from framework.tune.space import left_out, regularizes
from framework.tune.supervise import keep_running
from framework.tune.table import Report

_ALL, _NONE = "all", "none"
_ORDER = "order.json"


def ablate(
    recipe: Source,
    *,
    seeds: int = 8,
    metric: str | None = None,
    mode: str | None = None,
    keep: Iterable[str] = (),
    alone: bool = True,
    workers: int = 1,
    parameters: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    with_: Additions = (),
    without: Iterable[str] = (),
    logs: str | Path = "lightning_logs",
    name: str = "ablation",
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Train a recipe with all of its plugins, with none, without each of them and with each alone, and compare.

    Runs are paired by their seeds: adding a plugin changes nobody else's draws, so that the two of a pair begin with
    the same weights and see the same samples in the same order. A plugin's *gain* is that of the recipe over the recipe
    without it; alone, that of it over none. Plugins that optimize (optimizer, schedule) or that only hand back the best
    epoch are in every run. The figure is the metric on the validation part at the best epoch.

    The runs stand in ``<logs>/<recipe>/ablations/<name>/``, with ``report.md``, ``report.html`` and ``report.csv``. The
    same call goes on with what was interrupted.

    Args:
        recipe: path of a recipe file, or a function that returns a :class:`framework.Recipe`.
        seeds: number of seeds, from 0; six are the fewest by which two can be told apart.
        metric: tag of the figure, None for the recipe's monitor.
        mode: ``"min"`` or ``"max"``, None for what the metric says.
        keep: names of further plugins that stay in every run.
        alone: train each plugin alone and none of them as well.
        workers: processes that train at the same time.
        parameters: parameters of the recipe function.
        trainer: options of Lightning's ``Trainer``.
        settings: settings of plugins.
        with_: plugins to add.
        without: names of plugins to leave out.
        logs: folder of all runs.
        name: the ablation's name.
        tell: called with a line for each run that ended.

    Returns:
        The table.

    Raises:
        UserError: if the recipe has no plugin to leave out, the ablation of that name was another one, or no run with
            all plugins succeeded.
    """
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 2:
        raise UserError(f"seeds={seeds!r}: must be a whole number >= 2")
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise UserError(f"workers={workers!r}: must be a whole number >= 1")
    order = Order(
        recipe=recipe,
        name=name,
        logs=logs,
        kind="ablations",
        parameters=dict(parameters or {}),
        trainer=dict(trainer or {}),
        settings=dict(settings or {}),
        with_=list(with_),
        without=list(without),
        metric=metric,
        mode=mode,
        threads=max(1, torch.get_num_threads() // workers),
    )
    built = order.build()
    off = arms(built, list(keep), alone=alone)
    order.check(built)
    _keep(order)
    jobs = {
        (arm, seed): Job(order.folder / arm.replace(" ", "_") / f"seed_{seed}", seed, {"without": names})
        for seed in range(seeds)
        for arm, names in off.items()
    }
    titles = {job.folder: f"{arm}, seed {seed}" for (arm, seed), job in jobs.items()}
    every = list(jobs.values())
    forget_errors(every)

    def told(job: Job) -> None:
        if tell is not None:
            tell(titles[job.folder])

    if workers == 1:
        work(order, every, told)
    else:
        look = _Look(order, every, told)
        keep_running(main, (order, every), workers, order.threads, f"ablation {name!r}", look)
    result = dataclasses.replace(_report(order, built, off, jobs), folder=order.folder)
    result.write(order.folder)
    return result


class _Look:
    """Tells of runs that ended, or failed, since the last look."""

    def __init__(self, order: Order, jobs: Sequence[Job], told: Callable[[Job], None]) -> None:
        self.order, self.told = order, told
        self.left = [job for job in jobs if ended(order, job) is None]

    def __call__(self) -> bool:
        over = [job for job in self.left if ended(self.order, job) is not None or error_of(job) is not None]
        for job in over:
            self.left.remove(job)
            self.told(job)
        return bool(over)


def _keep(order: Order) -> None:
    """Keep the order in the ablation's folder, whose runs are not to be taken for those of another."""
    file = order.folder / _ORDER
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    asked = order.check_same(before, {})
    order.folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")


def arms(recipe: Recipe, keep: Sequence[str] = (), *, alone: bool = True) -> dict[str, list[str]]:
    """Return for each arm the names of the plugins that it leaves out.

    A plugin that needs another one is left out together with it.

    Args:
        recipe: the recipe.
        keep: names of plugins that stay in every arm, besides those that optimize.
        alone: add the arm without any, and those with one plugin alone.

    Raises:
        UserError: if nothing can be left out.
    """
    plugins = [plugin for plugin in recipe.plugins if isinstance(plugin, Plugin)]
    known = [plugin.name for plugin in plugins]
    for name in keep:
        if name not in known:
            raise UserError(f"keep {name}: the recipe has no such plugin{did_you_mean(name, known)}")
    tested = [plugin.name for plugin in plugins if regularizes(plugin) and plugin.name not in keep]
    if not tested:
        raise UserError(f"ablate: the recipe has no plugin to leave out; it has {', '.join(known) or 'none'}")
    chosen: dict[str, list[str]] = {_ALL: []}
    chosen |= {f"without {name}": left_out(plugins, [name]) for name in tested}
    if alone and len(tested) > 1:
        chosen |= {_NONE: left_out(plugins, tested)}
        chosen |= {f"{name} alone": left_out(plugins, [one for one in tested if one != name]) for name in tested}
    return chosen


def _report(
    order: Order, recipe: Recipe, off: Mapping[str, Sequence[str]], jobs: Mapping[tuple[str, int], Job]
) -> Report:
    runs: dict[str, list[Trained]] = {arm: [] for arm in off}
    errors = []
    for (arm, seed), job in jobs.items():
        found = ended(order, job)
        if found is not None:
            runs[arm].append(found)
        elif error := error_of(job):
            errors.append(f"{arm}, seed {seed} failed: {error}")
    if not runs[_ALL]:
        raise UserError(f"ablate: no run with all plugins ended; {errors[0] if errors else 'they are still trained'}")
    metric = str(order.metric)
    higher = higher_of(runs[_ALL][0], metric, order.mode)
    rows = []
    for arm in off:
        plugin = arm.removeprefix("without ")
        if plugin != arm:
            rows.append(row_of(f"{plugin} beside others", runs[_ALL], runs[arm], metric, higher))
            if f"{plugin} alone" in off:
                rows.append(row_of(f"{plugin} alone", runs[f"{plugin} alone"], runs[_NONE], metric, higher))
    if _NONE in off:
        rows.append(row_of("all of them", runs[_ALL], runs[_NONE], metric, higher))
    always = [one for one in map(name_of, recipe.plugins) if not any(one in names for names in off.values())]
    notes = [f"in every run: {', '.join(always)}"] if always else []
    together = [f"without {names[0]} also without {', '.join(names[1:])}" for names in _several(off)]
    title = f"{order.spec({}).name}: what each plugin is good for"
    return report(title, metric, higher, rows, "without it", [*notes, *together, *errors[:5]], first="with it")


def _several(off: Mapping[str, Sequence[str]]) -> list[list[str]]:
    found = [(arm.removeprefix("without "), names) for arm, names in off.items() if arm.startswith("without ")]
    return [[plugin, *(one for one in names if one != plugin)] for plugin, names in found if len(names) > 1]
