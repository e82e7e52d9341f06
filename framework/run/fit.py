"""A training run: the door ``fit``, and what comes of it."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities.exceptions import SIGTERMException

from framework.checkpoint.folder import RunFolder, versions_of_packages
from framework.checkpoint.resume import (
    Start,
    check_unchanged,
    clear,
    load_weights,
    run_to_resume,
    start_of,
    start_of_phase,
    tell,
)
from framework.checkpoint.signals import Signals, Stopped
from framework.data.parts import length_of
from framework.engine.core import Core
from framework.engine.skips import OnNonFinite
from framework.errors import UserError
from framework.plugin.phase import Phase, PhaseRun
from framework.plugin.plugin import Plugin
from framework.recipe.edits import name_of
from framework.recipe.lint import lint, report
from framework.recipe.recipe import Recipe
from framework.recipe.spec import Additions, Order, Source
from framework.run.faults import faults
from framework.run.quiet import quiet
from framework.run.trainer import Keeping, refusals, training_trainer


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
        seconds: wall time, over all the times that it was resumed.
        core: the trained core; ``core.model`` is the network, with the parameters that the run hands back.
        recipe: the recipe as it was run.
        folder: the run's folder, None where nothing was written.
        name: the recipe's name.
        file: the recipe's file, None where the recipe came from Python.
        phases: later phases on all the data, which a plugin asked for. ``core`` is then that of the last one, and
            ``best`` holds its weights; metrics, epochs and steps are those from before, when the validation part could
            still tell.
        skipped: steps among ``steps`` that were left out since they were not finite.
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
    skipped: int = 0

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
    """Ctrl-C or SIGTERM ended a run.

    Args:
        run: what came of it, best parameters put back.
        number: the signal's number.
    """

    def __init__(self, run: Run, number: int) -> None:
        super().__init__("training was interrupted")
        self.run = run
        self.number = number


def fit(
    recipe: Source,
    *,
    seed: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    with_: Additions = (),
    without: Iterable[str] = (),
    logs: str | Path | None = "lightning_logs",
    on_nonfinite: OnNonFinite | None = None,
    resume: bool | str | Path = False,
    weights: str | Path | None = None,
    checkpoint_steps: int | None = None,
    checkpoint_minutes: float | None = 5.0,
) -> Run:
    """Train a recipe and return what came of it.

    A run that was ended by a signal, an error or the machine goes on by ``resume``, to the same bits as if it had been
    left alone: everything is drawn by seed and place, and the rest is in its checkpoints. With another number of ranks
    the samples of each step stay the same where ranks times accumulated micro-batches do; sums over ranks are then
    rounded otherwise, each rank's own draws differ (dropout, say), and training metrics count from the resumed step on
    in that epoch.

    Args:
        recipe: path of a recipe file, a function that returns a :class:`framework.Recipe`, or a ``Recipe``.
        seed: keys initialization, sample order and every draw; 0 unless given.
        parameters: parameters of the recipe function.
        trainer: options of Lightning's ``Trainer``, on top of the recipe's.
        settings: settings of plugins to change, such as ``{"weight_noise.std": 0.05}``.
        with_: plugins to add, ``(name, settings)``, by registered name.
        without: names of plugins to leave out.
        logs: folder for the run's folder; None to write nothing.
        on_nonfinite: what to do where the objective turns infinite or not a number: ``"stop"`` (unless given) with a
            :class:`framework.errors.NonFiniteError` that says where it comes from, or ``"skip"`` such steps and count
            them.
        resume: go on with a run instead of starting one: True for the recipe's last unfinished run in ``logs``, or the
            run's folder. What is ordered besides comes on top of what the run was ordered with.
        weights: checkpoint whose weights the network starts with; everything else starts anew.
        checkpoint_steps: optimizer steps between two checkpoints, None for no such rule; there is one at the end of
            each epoch in any case.
        checkpoint_minutes: minutes between two checkpoints, None for no such rule.

    Returns:
        The run: metrics, checkpoints, the trained core.

    Raises:
        UserError: for mistakes in recipe, settings or options, and where there is nothing to resume.
        Interrupted: on Ctrl-C or SIGTERM; its ``run`` holds what came of it.
    """
    _check(resume, weights, logs, checkpoint_steps, checkpoint_minutes)
    order = Order(recipe, seed, parameters, trainer, settings, with_, without, on_nonfinite)
    folder, before = None, None
    if resume:
        folder = run_to_resume(None if resume is True else resume, Path(str(logs)), order.name)
        before = folder.read()
        order.on_top_of(before, training=True)
    built = order.build()
    options = order.options(built)
    core = built.make_core(order.seed, options, order.on_nonfinite)
    if weights is not None:
        load_weights(core.model, weights)
    core.attach_plugins()  # before a folder is made: most mistakes show here
    report(lint(built, core, options), order.name)
    record = _record(order, built, core)
    start = None
    if folder is not None and before is not None:
        folder.hold()
        try:
            start, record["resumed"] = _resume(folder, before, record, core)
        except BaseException:
            folder.leave()
            raise
    elif logs is not None:
        folder = RunFolder.create(Path(logs), order.name)
        folder.copy_recipe(order.file)
    with Signals() as signals:
        keeping = Keeping(folder, signals, checkpoint_steps, checkpoint_minutes)
        try:
            run = _run(order, built, core, record, keeping, start)
        finally:
            if folder is not None:
                folder.leave()
    if run.status == "interrupted":
        raise Interrupted(run, signals.shared or signals.received or signal.SIGINT)
    return run


def _check(resume: object, weights: object, logs: object, steps: int | None, minutes: float | None) -> None:
    if resume and weights is not None:
        raise UserError(f"weights={str(weights)!r}: a run that goes on has its own weights; give resume or weights")
    if resume is True and logs is None:
        raise UserError("resume=True: needs logs, the folder of all runs; or name the run's folder")
    for name, value in (("checkpoint_steps", steps), ("checkpoint_minutes", minutes)):
        if value is not None and not value > 0:
            raise UserError(f"{name}={value!r}: must be above 0, or None for no such rule")


def _resume(
    folder: RunFolder, before: Mapping[str, Any], record: Mapping[str, Any], core: Core
) -> tuple[Start, list[Any]]:
    """Find out where a run goes on, and make its folder ready for that."""
    differing = check_unchanged(folder, before, record, core)
    if before["status"] in ("finished", "stopped") and not differing:
        raise UserError(
            f"--resume {folder.path}: this run has ended ({before['status']}); to train it further give"
            " --trainer.max_epochs"
        )
    start = start_of(folder)
    if start is None:
        raise UserError(
            f"--resume: {folder.path} was cut off before its first checkpoint; leave --resume out to start anew"
        )
    tell(folder, start, differing)
    if RunFolder.of_ranks() is None:
        clear(folder, start)
    began = {"step": start.step, "epoch": start.epoch, "checkpoint": start.path.name, "differs": differing}
    return start, [*before.get("resumed", []), began]


def _run(
    order: Order, recipe: Recipe, core: Core, record: Mapping[str, Any], keeping: Keeping, start: Start | None
) -> Run:
    """Train, and all later phases."""
    began = time.monotonic() - (0.0 if start is None else start.seconds)
    folder = keeping.folder
    if folder is not None:
        folder.write({**record, "status": "running"})
    status = "failed"
    try:
        status = _train(core, recipe, order.options(recipe), keeping, start=start)
    finally:
        run = _outcome(order, recipe, core, folder, status, time.monotonic() - began)
        if folder is not None:
            # a phase may follow; a run that is cut off in it goes on there
            going_on = status in ("finished", "stopped")
            folder.write({**record, "status": "running" if going_on else status, **_results(run)})
    while run.status != "interrupted" and (phase := run.core.answers.sole("next_phase", run.core)) is not None:
        _train_phase(run, order, phase, keeping)
    if folder is not None:
        folder.update(status=run.status)
    return run


def _train(
    core: Core,
    recipe: Recipe,
    options: Mapping[str, Any],
    keeping: Keeping,
    phase: Phase | None = None,
    start: Start | None = None,
) -> str:
    """Fit a core once and return how it ended; the plugins are told on every way out."""
    trainer = training_trainer(recipe, options, keeping, phase, start)
    try:
        with quiet(), refusals(), faults(core):
            # weights_only: a checkpoint is data, whatever the environment says
            trainer.fit(core, ckpt_path=None if start is None else start.path, weights_only=True)
    except SystemExit as end:
        # Lightning's end of a second signal, and of a SIGTERM in the moment that its own handler was in
        if not isinstance(end, SIGTERMException) and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        return _interrupted(trainer)
    except (KeyboardInterrupt, Stopped):
        return _interrupted(trainer)
    finally:
        core.close_loaders()
        core.leave_evaluation()
        for finish in core.answers.calls("finish"):
            finish(core)
    return "stopped" if trainer.should_stop else "finished"


def _interrupted(trainer: pl.Trainer) -> str:
    """Have Lightning watch the ranks that it launched no more: up to five seconds later it would kill this process.

    It does where one of them ends by another code than 0, and of a signal they too end by the signal's.
    """
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.procs.clear()  # the list that is watched
    return "interrupted"


def _train_phase(run: Run, order: Order, phase: Phase, keeping: Keeping) -> None:
    """Train one more phase; where it ended by itself its network becomes the run's."""
    core, recipe, folder = run.core, run.recipe, keeping.folder
    keeping = dataclasses.replace(keeping, after=run.steps)
    start = None if folder is None else start_of_phase(folder, phase.name, run.steps)
    if phase.start == "initial":
        recipe = order.build()
        recipe = dataclasses.replace(recipe, plugins=[p for p in recipe.plugins if name_of(p) not in phase.without])
        core = recipe.make_core(order.seed, order.options(recipe), order.on_nonfinite)
    core.data = recipe.data.joined()
    core.recorder.history = []
    done, began = PhaseRun(phase.name), time.monotonic() - (0.0 if start is None else start.seconds)
    run.phases.append(done)
    run.status = "failed"
    try:
        run.status = done.status = _train(core, recipe, phase.options(order.options(recipe)), keeping, phase, start)
        if done.status != "interrupted":
            run.core, run.recipe = core, recipe
            if folder is not None and core.trainer.is_global_zero:
                phase.hand_over(folder)
    finally:
        history = core.recorder.history
        done.metrics = dict(history[-1].metrics) if history else {}
        done.epochs = _epochs(core)
        done.steps = core.at.index
        done.seconds = time.monotonic() - began
        run.seconds += done.seconds
        if folder is not None:
            folder.update(**_results(run))


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
        epochs=_epochs(core),
        steps=core.at.index,
        skipped=core.update.skipped,
        seconds=seconds,
        core=core,
        recipe=recipe,
        folder=None if folder is None else folder.path,
        name=order.name,
        file=order.file,
    )


def _epochs(core: Core) -> int:
    """Return the epochs done; Lightning's ``current_epoch`` leaves out the last one where a signal ended it."""
    if core._trainer is None:
        return 0
    done: Any = core.trainer.fit_loop.epoch_progress.current
    return int(done.processed)


def _record(order: Order, recipe: Recipe, core: Core) -> dict[str, Any]:
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
        **order.record(),
        "plugins": plugins,
        "trainer_options": order.options(recipe),
        "monitor": recipe.monitor,
        "mode": recipe.mode,
        "core": f"{type(core).__module__}.{type(core).__qualname__}",
        "samples": length_of(recipe.data.train),
        "batch_size": recipe.data.batch_size,
        "weights": sum(p.numel() for p in core.model.parameters()),
        "versions": versions_of_packages(),
    }


def _results(run: Run) -> dict[str, Any]:
    names = ("metrics", "last", "best_epoch", "epochs", "steps", "skipped", "seconds")
    return {**{name: getattr(run, name) for name in names}, "phases": [vars(phase) for phase in run.phases]}
