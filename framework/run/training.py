"""One call of the Trainer's ``fit``, and the later phases of a run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities.exceptions import SIGTERMException

from framework.checkpoint.resume import Start, start_of_phase
from framework.checkpoint.signals import Stopped
from framework.engine.core import Core
from framework.plugin.phase import Phase
from framework.recipe.edits import name_of
from framework.recipe.recipe import Recipe
from framework.recipe.spec import RunSpec
from framework.run.faults import faults
from framework.run.quiet import quiet
from framework.run.result import PhaseRun, Run, epochs_done, results_of
from framework.run.trainer import SaveOptions, refusals, training_trainer


def train(
    core: Core,
    recipe: Recipe,
    options: Mapping[str, Any],
    save: SaveOptions,
    phase: Phase | None = None,
    start: Start | None = None,
) -> str:
    """Call the Trainer's ``fit`` once and return how it ended; the plugins' ``finish`` is called in any case.

    Args:
        core: the core to train.
        recipe: the recipe.
        options: the Trainer's options.
        save: where and when to save checkpoints.
        phase: the later phase to train, None for the run itself.
        start: the checkpoint to resume from, None to start from the beginning.

    Returns:
        ``"finished"``, ``"stopped"`` (by a plugin or callback), or ``"interrupted"``.
    """
    trainer = training_trainer(recipe, options, save, phase, start)
    try:
        with quiet(), refusals(), faults(core):
            # weights_only overrides torch's environment variables: a checkpoint is only data
            trainer.fit(core, ckpt_path=None if start is None else start.path, weights_only=True)
        if save.accept is not None and trainer.is_global_zero:
            save.accept()  # a run that is resumed after its last step starts no loop
    except SystemExit as end:
        # Lightning exits on a second signal, and on a SIGTERM that arrives while its own handler is installed
        if not isinstance(end, SIGTERMException) and not isinstance(end.__context__, KeyboardInterrupt):
            raise
        return _interrupted(trainer)
    except (KeyboardInterrupt, Stopped):
        return _interrupted(trainer)
    finally:
        core.close_loaders()
        core.leave_evaluation()
        core.answers.notify("finish", core)
    return "stopped" if trainer.should_stop else "finished"


def _interrupted(trainer: pl.Trainer) -> str:
    """Stop Lightning from watching the ranks that it launched, and return ``"interrupted"``.

    Lightning would kill this process within five seconds of a rank's exit with another code than 0, and ranks that a
    signal ends have the signal's code.
    """
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.procs.clear()  # the list that Lightning watches
    return "interrupted"


def train_phase(run: Run, spec: RunSpec, phase: Phase, save: SaveOptions) -> None:
    """Train a later phase; if it is not interrupted, its network becomes the run's.

    Args:
        run: the run so far, which is updated.
        spec: specification of the run.
        phase: the phase.
        save: where and when to save checkpoints.
    """
    core, recipe, folder = run.core, run.recipe, save.folder
    save = dataclasses.replace(save, after=run.steps, accept=None)
    start = None if folder is None else start_of_phase(folder, phase.name, run.steps)
    if phase.start == "initial":
        recipe = spec.build()
        recipe = dataclasses.replace(recipe, plugins=[p for p in recipe.plugins if name_of(p) not in phase.without])
        core = recipe.make_core(spec.seed, spec.options(recipe), spec.on_nonfinite)
    core.data = recipe.data.joined()
    core.recorder.history = []
    result, began = PhaseRun(phase.name), time.monotonic() - (0.0 if start is None else start.seconds)
    run.phases.append(result)
    run.status = "failed"
    try:
        run.status = result.status = train(core, recipe, phase.options(spec.options(recipe)), save, phase, start)
        if result.status != "interrupted":
            run.core, run.recipe = core, recipe
            if folder is not None and core.trainer.is_global_zero:
                folder.hand_over(phase.name)
    finally:
        history = core.recorder.history
        result.metrics = dict(history[-1].metrics) if history else {}
        result.epochs = epochs_done(core)
        result.steps = core.at.index
        result.seconds = time.monotonic() - began
        run.seconds += result.seconds
        if folder is not None:
            folder.update(**results_of(run))
