"""One trial of a study: its runs, each of which is resumed if it was begun before."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.checkpoint.folder import ENDED, RunFolder
from framework.checkpoint.resume import start_of
from framework.errors import UserError
from framework.run.fit import fit
from framework.tune.order import Order
from framework.tune.pruning import PRUNED, Pruning

if TYPE_CHECKING:
    from optuna.trial import Trial


class GivenUp(Exception):
    """The study's pruner gave the trial up."""


def folder_of(order: Order, number: int) -> Path:
    """Return the folder of a trial."""
    return order.folder / "trials" / f"{number:05d}"


def train(order: Order, trial: Trial, chosen: Mapping[str, Any], epochs_of_run: int) -> dict[str, Any]:
    """Make a trial's runs, or go on with those that were begun, and return its figures.

    Args:
        order: the study's order.
        trial: the trial.
        chosen: what the trial changes in the recipe.
        epochs_of_run: number of epochs of a run.

    Returns:
        ``value``, the mean over runs of the metric at the best epoch; ``values`` of single runs; ``seconds``;
        ``epochs``.

    Raises:
        GivenUp: if the pruner gives it up.
        UserError: if the metric is never logged or never finite.
    """
    values: list[float] = []
    seconds, epochs = 0.0, 0
    for index, record in enumerate(_records(order, trial, chosen, epochs_of_run)):
        seconds, epochs = seconds + record["seconds"], epochs + record["epochs"]
        if index == 0 and trial.storage.get_trial(trial._trial_id).user_attrs.get(PRUNED):
            raise GivenUp
        values.append(_figure(record, str(order.metric)))
        if order.prune == "wilcoxon" and _given_up_among_runs(trial, values):
            raise GivenUp
    return {"value": statistics.fmean(values), "values": values, "seconds": seconds, "epochs": epochs}


def _records(order: Order, trial: Trial, chosen: Mapping[str, Any], epochs_of_run: int) -> Iterator[dict[str, Any]]:
    for index, (seed, fold) in enumerate(order.runs()):
        logs = folder_of(order, trial.number) / (f"seed_{seed}" if fold is None else f"seed_{seed}_fold_{fold}")
        overrides = order.overrides(chosen)
        if fold is not None:
            overrides["parameters"] |= {"fold": fold}
        if index == 0 and order.prune in ("median", "asha", "hyperband"):
            own = overrides["trainer"].get("callbacks", order.callbacks)
            overrides["trainer"]["callbacks"] = [*own, Pruning(order, trial.number, epochs_of_run)]
        yield ended_run(order, logs, seed, overrides)


def ended_run(order: Order, logs: Path, seed: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a run that has ended: it is begun, resumed, or was trained to its end before.

    Args:
        order: the study's order.
        logs: folder of this run alone.
        seed: the run's seed.
        overrides: changes to the recipe.
    """
    name = order.spec({}).name
    found = RunFolder.all(logs, name)
    if found and (found[0].path / "run.json").exists():
        folder = found[0]
        if folder.read()["status"] in ENDED:
            return _tidy(folder)
        if start_of(folder) is not None:
            fit(order.factory(), seed=seed, logs=logs, resume=folder.path, **overrides)
            return _tidy(folder)
    shutil.rmtree(logs, ignore_errors=True)  # killed before its first checkpoint
    run = fit(order.factory(), seed=seed, logs=logs, **overrides)
    assert run.folder is not None
    return _tidy(RunFolder(run.folder))


def _tidy(folder: RunFolder) -> dict[str, Any]:
    """Remove the checkpoints that only a resume would need."""
    for name in ("last", "previous"):
        if (folder.checkpoints / "best.ckpt").exists():
            (folder.checkpoints / f"{name}.ckpt").unlink(missing_ok=True)
    return folder.read()


def _figure(record: Mapping[str, Any], metric: str) -> float:
    metrics = record["metrics"]
    if metric not in metrics:
        raise UserError(f"metric={metric!r}: never logged (logged are: {', '.join(sorted(metrics)) or 'none'})")
    value = float(metrics[metric])
    if not math.isfinite(value):
        raise UserError(f"metric={metric!r}: {value} at the best epoch")
    return value


def _given_up_among_runs(trial: Trial, values: list[float]) -> bool:
    step = len(values)
    if step not in trial.storage.get_trial(trial._trial_id).intermediate_values:
        trial.report(values[-1], step)
    return trial.should_prune()
