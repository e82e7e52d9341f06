"""``fit``: train a recipe, or resume a run, and return its result."""

from __future__ import annotations

import dataclasses
import functools
import signal
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback

from framework.checkpoint.folder import ENDED, RunFolder
from framework.checkpoint.ranks import is_first
from framework.checkpoint.resume import (
    Start,
    announce,
    check_unchanged,
    clear,
    curves_in,
    run_to_resume,
    start_of,
)
from framework.checkpoint.signals import Signals
from framework.checkpoint.weights import core_with_weights
from framework.engine.core import Core
from framework.engine.skips import OnNonFinite
from framework.errors import UserError
from framework.foreign.checks import lightning_base
from framework.recipe.lint import lint, raise_or_warn
from framework.recipe.recipe import Recipe
from framework.recipe.spec import Additions, RunSpec, Source
from framework.run.caller import as_alone
from framework.run.result import Interrupted, Run, make_run, record_of, results_of
from framework.run.trainer import SaveOptions
from framework.run.training import train, train_phase


@as_alone()
def fit(
    recipe: Source | Any,
    data: Any = None,
    plugins: Sequence[Callback] = (),
    *,
    seed: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    with_: Additions = (),
    without: Iterable[str] = (),
    logs: str | Path | None = "lightning_logs",
    on_nonfinite: OnNonFinite | None = None,
    attribute: int | None = None,
    resume: bool | str | Path = False,
    weights: str | Path | None = None,
    checkpoint_steps: int | None = None,
    checkpoint_minutes: float | None = 5.0,
    checkpoint_seconds: float = 2.0,
) -> Run:
    """Train a recipe and return the result.

    The process's random generators are left as they were. Fits in several threads wait for one another.

    A run that was ended by a signal, an error or a crash can be resumed (``resume``), bit for bit as if it had not been
    interrupted: random draws depend only on the seed and on what they are drawn for, and everything else is in the
    checkpoints. With another number of ranks each step has the same samples if ranks times accumulated micro-batches
    stay the same; but sums over ranks are rounded differently, each rank's own draws (such as dropout) differ, and the
    training metrics of that epoch count from the resumed step on.

    Args:
        recipe: path of a recipe file, a function that returns a :class:`framework.Recipe`, a ``Recipe``, or a
            ``LightningModule``, which is trained as it is.
        data: for a ``LightningModule``, its data, as for ``Recipe(module=..., data=...)``.
        plugins: for a ``LightningModule``, the plugins.
        seed: random seed of initialization, sample order and every other draw; None for 0, or when resuming the seed
            of the run.
        parameters: parameters of the recipe function.
        trainer: options of Lightning's ``Trainer``, which override the recipe's.
        settings: settings of plugins to change, such as ``{"weight_noise.std": 0.05}``.
        with_: plugins to add: objects such as ``SAM()``, registered names, or ``(name, settings)``.
        without: names of plugins to leave out.
        logs: folder of all runs, in which the run makes its own folder; None to write nothing.
        on_nonfinite: what to do if the objective is infinite or not a number: ``"stop"`` (the default) with a
            :class:`framework.errors.NonFiniteError` that says where the value comes from, or ``"skip"`` such steps and
            count them.
        attribute: steps between two looks at what each plugin does to gradient and weights, and what time it takes:
            curves ``attribution/...``, and a table in the summary; None for none.
        resume: resume a run instead of starting one: True for the recipe's last unfinished run in ``logs``, or the
            run's folder. The other arguments override those that the run was started with.
        weights: file from which the network's weights are loaded: a checkpoint of a run or of Lightning, a saved
            ``state_dict()``, or ``FILE.safetensors`` as ``export`` writes it; all else starts afresh.
        checkpoint_steps: optimizer steps between two checkpoints, None for no such rule.
        checkpoint_minutes: minutes between two checkpoints, None for no such rule.
        checkpoint_seconds: least seconds from a checkpoint to one at the end of an epoch, 0 for one at the end of each
            epoch. Those of the first and the last epoch are written in any case.

    Returns:
        The run: metrics, checkpoints, the trained core.

    Raises:
        UserError: if the recipe, a setting or an option is wrong, or there is no run to resume.
        Interrupted: on Ctrl-C or SIGTERM; its ``run`` is the result so far.
    """
    _check(resume, weights, logs, checkpoint_steps, checkpoint_minutes, checkpoint_seconds)
    if lightning_base(recipe) is not None:
        recipe = Recipe(module=recipe, data=data, plugins=list(plugins))
    elif data is not None or plugins:
        raise UserError("fit(recipe, data, plugins): a recipe has its own; they are for a LightningModule")
    spec = RunSpec(recipe, seed, parameters, trainer, settings, with_, without, on_nonfinite, attribute)
    folder, before = None, None
    if resume:
        folder = run_to_resume(None if resume is True else resume, Path(str(logs)), spec.name)
        before = folder.read()
        spec.on_top_of(before, training=True)
    built = spec.build()
    options = spec.options(built)
    make = functools.partial(built.make_core, spec.seed, options, spec.on_nonfinite)
    if weights is None:
        core = make()
    else:
        core = core_with_weights(built.model, make, weights, "" if built.module is not None else "model.")
    core.attach_plugins()  # before a folder is made, since most mistakes show here
    raise_or_warn(lint(built, core, options), spec.name)
    record = record_of(spec, built, core)
    start = None
    if folder is not None and before is not None:
        folder.hold()
        try:
            start, record["resumed"] = _resume(folder, before, record, core)
        except BaseException:
            folder.leave()
            raise
    elif logs is not None:
        folder = RunFolder.create(Path(logs), spec.name)
        folder.copy_recipe(spec.file)
    with Signals() as signals:
        accept = None if folder is None or start is None else _Accept(folder, start, record)
        save = SaveOptions(folder, signals, checkpoint_steps, checkpoint_minutes, checkpoint_seconds, accept=accept)
        try:
            run = _run(spec, built, core, record, save, start)
        finally:
            if folder is not None:
                folder.leave()
    if run.status == "interrupted":
        raise Interrupted(run, signals.shared or signals.received or signal.SIGINT)
    return run


def _check(
    resume: object, weights: object, logs: object, steps: int | None, minutes: float | None, seconds: float
) -> None:
    if resume and weights is not None:
        raise UserError(f"weights={str(weights)!r}: a resumed run has its own weights; give either resume or weights")
    if resume is True and logs is None:
        raise UserError(
            "resume=True, logs=None: give logs, the folder of all runs, or the folder of one run: resume=FOLDER"
        )
    for name, value in (("checkpoint_steps", steps), ("checkpoint_minutes", minutes)):
        if value is not None and not value > 0:
            raise UserError(f"{name}={value!r}: must be above 0, or None for no such rule")
    if not seconds >= 0:
        raise UserError(f"checkpoint_seconds={seconds!r}: must be 0 or more; 0 writes a checkpoint after each epoch")


def _resume(
    folder: RunFolder, before: Mapping[str, Any], record: Mapping[str, Any], core: Core
) -> tuple[Start, list[Any]]:
    """Find the checkpoint to resume from; the folder is changed only once the run starts, see :class:`_Accept`.

    Returns:
        The checkpoint, and the entries "resumed" for ``run.json``.
    """
    differing = check_unchanged(folder, before, record, core)
    if before["status"] in ENDED and not differing:
        raise UserError(
            f"--resume {folder.path}: this run has ended ({before['status']}); to train it further, give"
            " --trainer.max_epochs"
        )
    start = start_of(folder)
    if start is None:
        raise UserError(
            f"--resume {folder.path}: this run ended before its first checkpoint; leave --resume out to start a new run"
        )
    announce(folder, start, differing)
    began = {"step": start.step, "epoch": start.epoch, "checkpoint": start.path.name, "differs": differing}
    return start, [*before.get("resumed", []), began]


@dataclasses.dataclass
class _Accept:
    """Begins to resume a run: cleans up its folder and writes ``run.json``; all calls but the first do nothing.

    Until then anything may refuse the resume, and the folder must stay as it was.

    Args:
        folder: the run's folder.
        start: the checkpoint.
        record: the new content of ``run.json``, without status.
    """

    folder: RunFolder
    start: Start
    record: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._curves = curves_in(self.folder)
        self._done = False

    def __call__(self) -> None:
        """Begin."""
        if self._done:
            return
        self._done = True
        if is_first():
            clear(self.folder, self.start, self._curves)
        self.folder.write({**self.record, "status": "running"})

    def withdraw(self) -> None:
        """Remove the event files that Lightning opened for a run that was then refused."""
        if is_first():
            for name in curves_in(self.folder) - self._curves:
                (self.folder.path / name).unlink(missing_ok=True)


def _run(
    spec: RunSpec, recipe: Recipe, core: Core, record: Mapping[str, Any], save: SaveOptions, start: Start | None
) -> Run:
    """Train, then run the later phases that plugins request."""
    began = time.monotonic() - (0.0 if start is None else start.seconds)
    folder = save.folder
    before = None if folder is None or start is None else folder.read()
    if folder is not None and start is None:
        folder.write({**record, "status": "running"})
    status = "failed"
    try:
        status = train(core, recipe, spec.options(recipe), save, start=start)
    finally:
        run = make_run(spec, recipe, core, folder, status, time.monotonic() - began)
        # the file itself tells, since a spawned process may have accepted
        refused = folder is not None and before is not None and folder.read() == before
        if refused and isinstance(save.accept, _Accept):
            save.accept.withdraw()
        elif folder is not None:
            # a phase may follow; a run that is interrupted in it is resumed there
            may_continue = status in ENDED and run.core.answers.of("next_phase")
            folder.write({**record, "status": "running" if may_continue else status, **results_of(run)})
    ended = before is not None and before["status"] == "stopped"
    if (
        ended
        and start is not None
        and run.steps == start.step
        and core.answers.of("should_stop")
        and core.trainer.should_stop
    ):
        who = " and ".join(plugin.describe() for plugin in core.answers.of("should_stop"))
        warnings.warn(
            f"the resumed run made no step: the rule that had stopped it still holds, of {who}; change its settings,"
            " such as patience (--set early_stopping.patience=20)",
            stacklevel=2,
        )
    while run.status != "interrupted" and (phase := run.core.answers.sole("next_phase", run.core)) is not None:
        train_phase(run, spec, phase, save)
    if folder is not None and (run.phases or core.answers.of("next_phase")):
        folder.update(status=run.status)
    return run
