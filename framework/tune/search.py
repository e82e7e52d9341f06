"""``tune``: search a recipe's settings and parameters."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from framework.errors import UserError
from framework.recipe.edits import name_of
from framework.recipe.spec import Additions, Source
from framework.run.evaluate import test
from framework.run.fit import fit
from framework.tune.order import Order, Prune, Sampler
from framework.tune.results import Study
from framework.tune.space import Space
from framework.tune.storage import open_study
from framework.tune.supervise import keep_running
from framework.tune.worker import Worker, main

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def tune(
    recipe: Source,
    *,
    trials: int | None = None,
    minutes: float | None = None,
    epochs: int | None = None,
    search: Mapping[str, Any] | None = None,
    cocktail: bool = False,
    workers: int = 1,
    seeds: int = 1,
    folds: int = 0,
    metric: str | None = None,
    mode: str | None = None,
    prune: Prune = "none",
    sampler: Sampler = "tpe",
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    with_: Additions = (),
    without: Iterable[str] = (),
    logs: str | Path = "lightning_logs",
    name: str = "study",
    storage: str | None = None,
    refit: bool = False,
    tell: Callable[[Study, FrozenTrial], None] | None = None,
) -> Study:
    """Search settings of plugins and parameters of a recipe, and return the study.

    A trial is one choice of settings; its figure is the recipe's monitored metric on the validation part at the best
    epoch, the mean over seeds and folds. What is searched: each number that the recipe uses and that declares a range
    (``Annotated[float, LogRange(1e-6, 1e-1)]``), plus ``search``, without what ``settings`` and ``parameters`` fix;
    with ``cocktail``, whether each plugin that regularizes is used. The first trial is the recipe as it is.

    The study stands in ``<logs>/<recipe>/studies/<name>/``. The same call goes on with a study that was interrupted,
    and more trials extend one that ended. A worker may be killed at any moment: the one that finds its trial resumes
    it, to the same figures. The test part is touched once, at the end, by the chosen trial alone.

    Args:
        recipe: path of a recipe file, or a function that returns a :class:`framework.Recipe`.
        trials: number of trials, 20 if no budget is given.
        minutes: minutes after which no further trial begins.
        epochs: number of epochs, all trials together, after which no further trial begins.
        search: ranges by name, ``"plugin.setting"`` or a parameter: ``"1e-3..1e-1"``, ``"64,128"``, or
            ``LogRange(1e-3, 1e-1)``, ``Range``, ``Choices``.
        cocktail: search also which plugins are used.
        workers: processes that train trials at the same time.
        seeds: runs of each trial, with seeds from 0.
        folds: runs of each trial with ``fold=0`` to ``folds - 1``, for a recipe with a parameter ``fold``; 0 for its
            own split.
        metric: tag of the figure, None for the recipe's monitor.
        mode: ``"min"`` or ``"max"``, None for what the metric says.
        prune: give up trials early: ``"median"``, ``"asha"`` (successive halving), ``"hyperband"``, by the first run's
            validations; ``"wilcoxon"``, by the figures of seeds and folds; ``"none"``.
        sampler: ``"tpe"`` (tree-structured Parzen estimator), or ``"random"``.
        seed: seed of the choice of settings.
        parameters: parameters of the recipe function, which are then not searched.
        trainer: options of Lightning's ``Trainer``.
        settings: settings of plugins, which are then not searched.
        with_: plugins to add.
        without: names of plugins to leave out.
        logs: folder of all runs.
        name: the study's name.
        storage: address of a storage that other machines reach, ``"postgresql://..."``, ``"sqlite:///FILE"``,
            ``"grpc://HOST:PORT"``; None for a journal file in the study's folder.
        refit: train the chosen settings once more, on the training and validation parts together.
        tell: called with the study and each trial that ended.

    Returns:
        The study: its trials, the best of them, tables, and the file of the chosen settings.

    Raises:
        UserError: if the space is empty, a range is not possible, the study is one of another recipe or space, the
            storage cannot be reached, or ten trials in a row failed.
    """
    _check(
        trials=trials,
        minutes=minutes,
        epochs=epochs,
        workers=workers,
        seeds=seeds,
        folds=folds,
        prune=prune,
        sampler=sampler,
        recipe=recipe,
    )
    order = Order(
        recipe=recipe,
        name=name,
        logs=logs,
        storage=storage,
        parameters=dict(parameters or {}),
        trainer=dict(trainer or {}),
        settings=dict(settings or {}),
        with_=list(with_),
        without=list(without),
        search=dict(search or {}),
        cocktail=cocktail,
        seeds=seeds,
        folds=folds,
        metric=metric,
        mode=mode,
        prune=prune,
        sampler=sampler,
        seed=seed,
    )
    study = begin(order, workers)
    if trials is None:
        trials = math.inf if minutes or epochs else 20  # type: ignore[assignment]
    until = time.time() + 60 * minutes if minutes else math.inf
    budget: tuple[float, float, float] = (float(trials), until, float(epochs or math.inf))  # type: ignore[arg-type]
    if workers == 1:
        with _threads(order.threads):
            Worker(order, *budget).work(None if tell is None else lambda trial: tell(study, trial))
    else:
        keep_running(main, (order, *budget), workers, order.threads, f"study {order.name!r}", _Look(study, tell))
    if study.best is not None:
        study.write_settings()
        _test(order, study)
        if refit:
            study.refitted = _refit(order, study)
    return study


def begin(order: Order, workers: int) -> Study:
    """Make a study, or open the one of that name, and settle what is left open in the order.

    Args:
        order: the order.
        workers: number of workers, which share the threads.

    Raises:
        UserError: if the space is empty, or the study that is there is another one.
    """
    recipe = order.build()
    space = Space(order, recipe)
    order.check(recipe)
    study = open_study(order.where, order.name, "maximize" if order.mode == "max" else "minimize")
    before = study.user_attrs.get("order")
    more = {"seeds": order.seeds, "folds": order.folds, "sampler": order.sampler, "seed": order.seed}
    asked = order.check_same(before, {**more, "space": str(space)})
    if before is None:
        study.set_user_attr("order", asked)
        study.set_user_attr("threads", max(1, torch.get_num_threads() // workers))
    order.threads = int(study.user_attrs["threads"])  # sums may be rounded otherwise with another number
    return Study(order, space, study)


def _check(**given: Any) -> None:
    for name, choices in (("prune", get_args(Prune)), ("sampler", get_args(Sampler))):
        if given[name] not in choices:
            raise UserError(f"{name}={given[name]!r}: must be one of {', '.join(map(repr, choices))}")
    if given["workers"] != 1 and getattr(given["recipe"], "__module__", None) == "__main__":
        raise UserError(
            f"workers={given['workers']!r}: workers cannot import a recipe from a notebook or script; write it into a"
            " file of its own, and give its path"
        )
    for name in ("trials", "workers", "seeds", "epochs"):
        value = given[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"{name}={value!r}: must be a whole number >= 1")
    if given["minutes"] is not None and not given["minutes"] > 0:
        raise UserError(f"minutes={given['minutes']!r}: must be above 0")
    if given["folds"] != 0 and (not isinstance(given["folds"], int) or given["folds"] < 2):
        raise UserError(f"folds={given['folds']!r}: must be a whole number >= 2, or 0 for the recipe's own split")
    if given["prune"] == "wilcoxon" and given["seeds"] * max(1, given["folds"]) < 2:
        raise UserError("prune='wilcoxon': compares trials by their seeds or folds; give seeds=5, or folds=5")


class _Look:
    """Tells of trials that ended since the last look."""

    def __init__(self, study: Study, tell: Callable[[Study, FrozenTrial], None] | None) -> None:
        self._study, self._tell = study, tell
        self._known = {one.number for one in study.ended()}

    def __call__(self) -> bool:
        """Return whether a trial ended."""
        new = [one for one in self._study.ended() if one.number not in self._known]
        for one in new:
            self._known.add(one.number)
            if self._tell is not None:
                self._tell(self._study, one)
        return bool(new)


@contextlib.contextmanager
def _threads(number: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _test(order: Order, study: Study) -> None:
    """Evaluate the test part with the chosen trial's runs, once."""
    best = study.best
    assert best is not None
    tested = study.study.user_attrs.get("tested") or {}
    folders = study.runs(best)  # none if they are on another machine, which tests them
    if tested.get("trial") == best.number or not folders or order.spec({}).build().data.test is None:
        return
    found: dict[str, list[float]] = {}
    for folder in folders:
        quiet = {"enable_progress_bar": False}
        for tag, value in test(order.factory(), run=folder, ckpt="best", trainer=quiet).items():
            found.setdefault(tag, []).append(value)
    study.study.set_user_attr("tested", {"trial": best.number, "metrics": found})


def _refit(order: Order, study: Study) -> Path:
    """Train the chosen settings until the best epoch, then from the start on all the data for as many epochs."""
    best = study.best
    assert best is not None
    overrides = order.overrides(study.chosen(best))
    recipe = order.spec(study.chosen(best)).build()
    own = next((name_of(one) for one in recipe.plugins if type(one).__name__ == "EarlyStopping"), None)
    if own is not None:
        overrides["settings"] |= {f"{own}.then": "retrain", f"{own}.count": "epochs"}
    else:
        patience = {"patience": 10**6, "then": "retrain", "count": "epochs"}
        overrides["with_"] = [*overrides["with_"], ("early_stopping", patience)]
    run = fit(order.factory(), seed=0, logs=order.folder / "refit", **overrides)
    assert run.folder is not None
    return run.folder
