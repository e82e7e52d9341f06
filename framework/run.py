"""A training run: the door ``fit``, and what comes of it."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from framework.edit_recipe import name_of
from framework.folder import RunFolder, versions_of_packages
from framework.lint import lint, report
from framework.module import Core
from framework.order import Additions, Order, Source
from framework.phase import Phase, PhaseRun
from framework.plugin import Plugin
from framework.quiet import quiet
from framework.recipe import Recipe
from framework.trainer import refusals, training_trainer


@dataclasses.dataclass
class Run:
    """What came of a training run.

    Args:
        status: ``"finished"``, ``"stopped"`` (by a plugin), ``"interrupted"`` or ``"failed"``.
        metrics: metrics by tag at the best epoch by the recipe's monitor; without validation those of the last epoch.
        last: metrics by tag at the last epoch.
        best_epoch: the best epoch, from 0, None without validation.
        epochs: epochs done.
        steps: optimizer steps done.
        seconds: wall time.
        core: the trained core; ``core.model`` is the network, with the parameters that the run hands back.
        recipe: the recipe as it was run.
        folder: the run's folder, None where nothing was written.
        name: the recipe's name.
        file: the recipe's file, None where the recipe came from Python.
        phases: later phases on all the data, which a plugin asked for. ``core`` is then that of the last one, and
            ``best`` holds its weights; metrics, epochs and steps are those from before, when the validation part could
            still tell.
    """

    status: str
    metrics: dict[str, float]
    last: dict[str, float]
    best_epoch: int | None
    epochs: int
    steps: int
    seconds: float
    core: Core
    recipe: Recipe
    folder: Path | None
    name: str
    file: Path | None
    phases: list[PhaseRun] = dataclasses.field(default_factory=list)

    @property
    def best(self) -> Path | None:
        """Path of the best checkpoint, None where none was written."""
        return self._checkpoint("best")

    @property
    def last_checkpoint(self) -> Path | None:
        """Path of the last checkpoint, None where none was written."""
        return self._checkpoint("last")

    def _checkpoint(self, which: str) -> Path | None:
        path = None if self.folder is None else RunFolder(self.folder).checkpoints / f"{which}.ckpt"
        return path if path is not None and path.exists() else None


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a run; ``run`` is what came of it, best parameters put back."""

    def __init__(self, run: Run) -> None:
        super().__init__("training was interrupted")
        self.run = run


def fit(
    recipe: Source,
    *,
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    with_: Additions = (),
    without: Iterable[str] = (),
    logs: str | Path | None = "lightning_logs",
) -> Run:
    """Train a recipe and return what came of it.

    Args:
        recipe: path of a recipe file, a function that returns a :class:`framework.Recipe`, or a ``Recipe``.
        seed: keys initialization, sample order and every draw.
        parameters: parameters of the recipe function.
        trainer: options of Lightning's ``Trainer``, on top of the recipe's.
        settings: settings of plugins to change, such as ``{"weight_noise.std": 0.05}``.
        with_: plugins to add, ``(name, settings)``, by registered name.
        without: names of plugins to leave out.
        logs: folder for the run's folder; None to write nothing.

    Returns:
        The run: metrics, checkpoints, the trained core.

    Raises:
        UserError: for mistakes in recipe, settings or options.
        Interrupted: on Ctrl-C; its ``run`` holds what came of it.
    """
    order = Order(recipe, seed, parameters, trainer, settings, with_, without)
    built = order.build()
    options = order.options(built)
    core = built.make_core(order.seed, options)
    core.attach_plugins()  # before a folder is made: most mistakes show here
    report(lint(built, core, options), order.name)
    folder = None if logs is None else RunFolder.create(Path(logs), order.name)
    began = time.monotonic()
    if folder is not None:
        folder.copy_recipe(order.file)
        folder.write(_record(order, built, core, "running"))
    status = "failed"
    try:
        status = _train(core, built, options, folder)
    finally:
        run = _outcome(order, built, core, folder, status, time.monotonic() - began)
        if folder is not None:
            folder.write({**_record(order, built, core, status), **_results(run)})
    while run.status != "interrupted" and (phase := run.core.answers.sole("next_phase", run.core)) is not None:
        _train_phase(run, order, phase, folder)
    if run.status == "interrupted":
        raise Interrupted(run)
    return run


def _train(
    core: Core, recipe: Recipe, options: Mapping[str, Any], folder: RunFolder | None, phase: Phase | None = None
) -> str:
    """Fit a core once and return how it ended; the plugins are told on every way out."""
    trainer = training_trainer(recipe, options, folder, phase)
    try:
        with quiet(), _interruptible(), refusals():
            trainer.fit(core)
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):  # Lightning's end of a Ctrl-C
            raise
        return "interrupted"
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        core.close_loaders()
        core.leave_evaluation()
        for finish in core.answers.calls("finish"):
            finish(core)
    return "stopped" if trainer.should_stop else "finished"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Put the handler of Ctrl-C back, which Lightning leaves ignoring every further one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _train_phase(run: Run, order: Order, phase: Phase, folder: RunFolder | None) -> None:
    """Train one more phase; where it ended by itself its network becomes the run's."""
    core, recipe = run.core, run.recipe
    if phase.start == "initial":
        recipe = order.build()
        recipe = dataclasses.replace(recipe, plugins=[p for p in recipe.plugins if name_of(p) not in phase.without])
        core = recipe.make_core(order.seed, order.options(recipe))
    core.data = recipe.data.joined()
    core.recorder.history = []
    done, began = PhaseRun(phase.name), time.monotonic()
    run.phases.append(done)
    run.status = "failed"
    try:
        run.status = done.status = _train(core, recipe, phase.options(order.options(recipe)), folder, phase)
        if done.status != "interrupted":
            run.core, run.recipe = core, recipe
            if folder is not None and core.trainer.is_global_zero:
                phase.hand_over(folder)
    finally:
        history = core.recorder.history
        done.metrics = dict(history[-1].metrics) if history else {}
        done.epochs = core.trainer.current_epoch if core._trainer is not None else 0
        done.steps = core.at.index
        done.seconds = time.monotonic() - began
        run.seconds += done.seconds
        if folder is not None:
            folder.update(status=run.status, **_results(run))


def _outcome(order: Order, recipe: Recipe, core: Core, folder: RunFolder | None, status: str, seconds: float) -> Run:
    history = core.recorder.history
    last = dict(history[-1].metrics) if history else {}
    known = [entry for entry in history if math.isfinite(entry.metrics.get(recipe.monitor, math.nan))]
    choose = min if recipe.mode == "min" else max
    best = choose(known, key=lambda entry: entry.metrics[recipe.monitor]) if known else None
    return Run(
        status=status,
        metrics=dict(best.metrics) if best else last,
        last=last,
        best_epoch=best.epoch if best else None,
        epochs=core.trainer.current_epoch if core._trainer is not None else 0,
        steps=core.at.index,
        seconds=seconds,
        core=core,
        recipe=recipe,
        folder=None if folder is None else folder.path,
        name=order.name,
        file=order.file,
    )


def _record(order: Order, recipe: Recipe, core: Core, status: str) -> dict[str, Any]:
    plugins = [
        {"name": p.name, "class": f"{type(p).__module__}.{type(p).__qualname__}", "settings": p.declared_}
        if isinstance(p, Plugin)
        else {"class": f"{type(p).__module__}.{type(p).__qualname__}"}
        for p in recipe.plugins
    ]
    return {
        "format": 1,
        "recipe": order.name,
        "file": order.file,
        "status": status,
        **order.record(),
        "plugins": plugins,
        "trainer_options": order.options(recipe),
        "monitor": recipe.monitor,
        "mode": recipe.mode,
        "weights": sum(p.numel() for p in core.model.parameters()),
        "versions": versions_of_packages(),
    }


def _results(run: Run) -> dict[str, Any]:
    names = ("metrics", "last", "best_epoch", "epochs", "steps", "seconds")
    return {**{name: getattr(run, name) for name in names}, "phases": [vars(phase) for phase in run.phases]}
