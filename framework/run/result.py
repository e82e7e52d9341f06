"""The result of a run: ``Run``, and what ``run.json`` records of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from framework.checkpoint.folder import RunFolder, versions_of_packages
from framework.engine.core import Core
from framework.ops.patterns import parameter_counts
from framework.plugin.plan import ways_of
from framework.plugin.plugin import Plugin
from framework.recipe.recipe import Recipe
from framework.recipe.spec import RunSpec
from framework.settings import plain


@dataclasses.dataclass
class PhaseRun:
    """The result of a later phase.

    Args:
        name: the phase's name.
        status: as that of a :class:`Run`.
        metrics: metrics by tag at the end of the phase; those of the validation part are measured on training data.
        epochs: epochs done.
        steps: optimizer steps done.
        seconds: wall time.
    """

    name: str
    status: str = "failed"
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclasses.dataclass
class Run:
    """The result of a training run.

    Args:
        status: ``"finished"``, ``"stopped"`` (by a plugin), ``"interrupted"`` or ``"failed"``.
        metrics: metrics by tag at the best epoch by the recipe's monitor; those of the last epoch without validation.
        last: metrics by tag at the last epoch.
        best_epoch: the best epoch, from 0; None without validation.
        epochs: epochs done.
        steps: optimizer steps done.
        seconds: wall time, including that before the run was resumed.
        core: the trained core; ``core.model`` is the network with its final parameters.
        recipe: the recipe, edits applied.
        folder: the run's folder, None if nothing was written.
        name: the recipe's name.
        file: the recipe's file, None if the recipe was given as a Python object.
        phases: later phases on all the data, which a plugin requested. ``core`` is then that of the last phase, and
            ``best`` holds its weights; metrics, epochs and steps are those from before, when the validation part was
            not trained on.
        skipped: steps among ``steps`` that were skipped because they were not finite.
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
        """Path of the best checkpoint, None if none was written."""
        return self._checkpoint("best")

    @property
    def last_checkpoint(self) -> Path | None:
        """Path of the last checkpoint, None if none was written."""
        return self._checkpoint("last")

    def _checkpoint(self, which: str) -> Path | None:
        path = None if self.folder is None else RunFolder(self.folder).checkpoints / f"{which}.ckpt"
        return path if path is not None and path.exists() else None


class Interrupted(KeyboardInterrupt):
    """Raised by ``fit`` when Ctrl-C or SIGTERM ended a run.

    Args:
        run: the result so far, with the best parameters restored.
        number: the signal's number.
    """

    def __init__(self, run: Run, number: int) -> None:
        super().__init__("training was interrupted")
        self.run = run
        self.number = number


def make_run(spec: RunSpec, recipe: Recipe, core: Core, folder: RunFolder | None, status: str, seconds: float) -> Run:
    """Return the result of a run that ended.

    Args:
        spec: specification of the run.
        recipe: the recipe, edits applied.
        core: the trained core.
        folder: the run's folder, None if nothing was written.
        status: how the run ended.
        seconds: wall time.
    """
    history = core.recorder.history
    recipe.monitor = core.recorder.monitor or recipe.monitor
    last = dict(history[-1].metrics) if history else {}
    best = core.recorder.best
    return Run(
        status=status,
        metrics=dict(best.metrics) if best else last,
        last=last,
        best_epoch=best.epoch if best else None,
        epochs=epochs_done(core),
        steps=core.at.index,
        skipped=core.at.skipped,
        seconds=seconds,
        core=core,
        recipe=recipe,
        folder=None if folder is None else folder.path,
        name=spec.name,
        file=spec.file,
    )


def epochs_done(core: Core) -> int:
    """Return the number of epochs done; Lightning's ``current_epoch`` omits the last one if a signal ended it."""
    if core._trainer is None:
        return 0
    done: Any = core.trainer.fit_loop.epoch_progress.current
    return int(done.processed)


def record_of(spec: RunSpec, recipe: Recipe, core: Core) -> dict[str, Any]:
    """Return what ``run.json`` records of a run from its start on: everything but its results."""
    plugins = [
        {"name": p.name, "class": f"{type(p).__module__}.{type(p).__qualname__}", "settings": p.declared_}
        if isinstance(p, Plugin)
        else {"class": f"{type(p).__module__}.{type(p).__qualname__}"}
        for p in recipe.plugins
    ]
    return {
        "format": 1,
        "recipe": spec.name,
        "file": spec.file,
        **spec.record(),
        "arguments": {name: plain(value) for name, value in recipe.parameters.items()},
        "plugins": plugins,
        "trainer_options": spec.options(recipe),
        "monitor": recipe.monitor,
        "mode": recipe.mode,
        "higher_is_better": ways_of(recipe.metrics),
        "core": f"{type(core).__module__}.{type(core).__qualname__}",
        "samples": recipe.data.samples("train"),
        "lost": recipe.data.lost(),
        "batch_size": recipe.data.batch_size,
        "weights": parameter_counts(core.model)[0],
        "versions": versions_of_packages(),
    }


def results_of(run: Run) -> dict[str, Any]:
    """Return the results of a run as ``run.json`` records them."""
    names = ("metrics", "last", "best_epoch", "epochs", "steps", "skipped", "seconds")
    return {**{name: getattr(run, name) for name in names}, "phases": [vars(phase) for phase in run.phases]}
