"""The doors from Python: ``fit``, ``validate``, ``test`` and ``predict``; the command line goes through them too."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from framework.dashboard import Dashboard
from framework.edit_recipe import apply_edits, name_of
from framework.errors import UserError
from framework.folder import RunFolder, versions_of_packages
from framework.load import build_recipe, load_recipe, plugins_defined_by
from framework.module import Core
from framework.notices import as_callbacks
from framework.phase import Phase, PhaseRun
from framework.plugin import Plugin
from framework.progress import make_progress
from framework.quiet import quiet
from framework.recipe import Recipe, check_trainer_options, lightning_options
from framework.value import as_text

Source = Recipe | Callable[..., Recipe] | str | Path
Additions = Iterable[tuple[str, Mapping[str, Any]]]


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


class _Order:
    """One order to train or evaluate: a recipe, how to build it anew, and the edits to it."""

    def __init__(
        self,
        source: Source,
        seed: int,
        parameters: Mapping[str, Any] | None,
        trainer: Mapping[str, Any] | None,
        settings: Mapping[str, Any] | None,
        with_: Additions,
        without: Iterable[str],
    ) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UserError(f"seed={seed!r}: must be a whole number from 0 to 2**32 - 1")
        self.seed = seed
        self.parameters = dict(parameters or {})
        self.trainer = dict(trainer or {})
        self.settings = dict(settings or {})
        self.additions = [(name, dict(given)) for name, given in with_]
        self.without = list(without)
        check_trainer_options(self.trainer)
        self.file = Path(source) if isinstance(source, str | Path) else None
        self._given = source if isinstance(source, Recipe) else None
        self._pristine: Recipe | None = None
        if self._given is not None:
            if self.parameters:
                raise UserError("parameters are for a recipe file or function; this recipe is built already")
            self._factory: Callable[..., Recipe] | None = None
            self.name = "recipe"
        else:
            self._factory = load_recipe(self.file) if self.file is not None else source  # type: ignore[assignment]
            name = getattr(self._factory, "__name__", "recipe")
            module = getattr(self._factory, "__module__", "recipe").rpartition(".")[2]
            self.name = self.file.stem if self.file is not None else module if name == "recipe" else name

    def build(self) -> Recipe:
        """Return the recipe with the edits applied; a fresh one at every call."""
        pl.seed_everything(self.seed, verbose=False)
        if self._factory is not None:
            recipe = build_recipe(self._factory, self.parameters)
        else:
            assert self._given is not None
            # the first build trains the user's own model; later ones start from what it was
            recipe = self._given if self._pristine is None else copy.deepcopy(self._pristine)
            self._pristine = self._pristine or copy.deepcopy(self._given)
        local = plugins_defined_by(self._factory) if self._factory is not None else None
        return apply_edits(recipe, self.settings, self.additions, self.without, local=local)

    def options(self, recipe: Recipe) -> dict[str, Any]:
        """Return the Trainer's options: the recipe's, then what was ordered on top."""
        return {**recipe.trainer, **self.trainer}

    def record(self) -> dict[str, Any]:
        """Return what it takes to give the same order again, as plain data."""
        return {
            "parameters": self.parameters,
            "trainer": self.trainer,
            "settings": self.settings,
            "with": self.additions,
            "without": self.without,
            "seed": self.seed,
        }


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
    order = _Order(recipe, seed, parameters, trainer, settings, with_, without)
    built = order.build()
    options = order.options(built)
    core = built.make_core(order.seed, options)
    core.attach_plugins()  # before a folder is made: most mistakes show here
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
    trainer = _make_trainer(recipe, options, folder, phase)
    try:
        with quiet():
            trainer.fit(core)
    except SystemExit:  # Lightning's end of a Ctrl-C
        return "interrupted"
    except KeyboardInterrupt:
        return "interrupted"
    except MisconfigurationException as error:
        raise UserError(_one_line(error)) from error
    finally:
        core.close_loaders()
        core.leave_evaluation()
        for finish in core.answers.calls("finish"):
            finish(core)
    return "stopped" if trainer.should_stop else "finished"


def _train_phase(run: Run, order: _Order, phase: Phase, folder: RunFolder | None) -> None:
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


def _make_trainer(
    recipe: Recipe, options: Mapping[str, Any], folder: RunFolder | None, phase: Phase | None
) -> pl.Trainer:
    chosen: dict[str, Any] = {"enable_model_summary": False, **lightning_options(options)}
    callbacks = [*as_callbacks(recipe.plugins), *(chosen.pop("callbacks", None) or [])]
    if chosen.get("logger", True) is True:
        chosen["logger"] = False
        if folder is not None:
            # a phase counts its steps from 0, so its curves stand apart
            path = folder.path if phase is None else folder.path / phase.name
            chosen["logger"] = TensorBoardLogger(path.parent.parent, name=path.parent.name, version=path.name)
            callbacks.append(Dashboard(recipe.parameters, monitor=recipe.monitor, mode=recipe.mode))
    if chosen.get("enable_progress_bar", True) and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(make_progress())
    if folder is None:
        chosen["enable_checkpointing"] = False
    keep = folder if chosen.get("enable_checkpointing", True) else None
    if phase is not None:
        callbacks += phase.callbacks(keep)
    elif keep is not None:
        callbacks += _checkpoints(recipe, keep)
    return make_lightning_trainer(chosen, callbacks)


def make_lightning_trainer(options: Mapping[str, Any], callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    """Return Lightning's ``Trainer``.

    Raises:
        UserError: where this machine lacks what the options ask for, or Lightning refuses them.
    """
    try:
        with quiet():
            trainer = pl.Trainer(**options, callbacks=list(callbacks))
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"trainer options: {_one_line(error)}") from error
    precision = options.get("precision")
    if precision in ("16-mixed", "16", 16) and trainer.precision_plugin.precision != "16-mixed":
        raise UserError(
            f"trainer.precision={precision!r}: this machine has no device for it (on a CPU Lightning would take bf16-mixed"
            " without telling); use --trainer.precision bf16-mixed or 32-true"
        )
    return trainer


def _checkpoints(recipe: Recipe, folder: RunFolder) -> list[pl.Callback]:
    # one without a monitor: with save_last and a monitor Lightning calls the best epoch's file last
    last = ModelCheckpoint(
        folder.checkpoints,
        filename="last",
        save_on_train_epoch_end=True,
        save_on_exception=True,
        enable_version_counter=False,
    )
    if recipe.data.val is None and recipe.monitor.startswith("val/"):
        return [last]
    best = ModelCheckpoint(
        folder.checkpoints,
        filename="best",
        monitor=recipe.monitor,
        mode=recipe.mode,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    return [best, last]


def _outcome(order: _Order, recipe: Recipe, core: Core, folder: RunFolder | None, status: str, seconds: float) -> Run:
    history = core.recorder.history
    last = dict(history[-1].metrics) if history else {}
    known = [entry for entry in history if recipe.monitor in entry.metrics]
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


def _record(order: _Order, recipe: Recipe, core: Core, status: str) -> dict[str, Any]:
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


def validate(recipe: Source | Run, **order: Any) -> dict[str, float]:
    """Return the metrics on the validation part; see :func:`test` for the arguments."""
    return _evaluate("validate", recipe, **order)


def test(recipe: Source | Run, **order: Any) -> dict[str, float]:
    """Return the metrics on the test part.

    Args:
        recipe: a :class:`Run`, evaluated with the parameters that it handed back, or what :func:`fit` takes.
        **order: ``ckpt``: ``"best"`` (default), ``"last"`` or a path; ``run``: the run's folder, by default the newest of
            that recipe in ``logs``; and ``seed``, ``parameters``, ``trainer``, ``settings``, ``with_``, ``without``, ``logs``
            as for :func:`fit`, by default those of the run.

    Raises:
        UserError: where there is no such run, checkpoint or data part.
    """
    return _evaluate("test", recipe, **order)


def predict(recipe: Source | Run, **order: Any) -> Any:
    """Return the network's outputs on the test part, as one tensor where they are tensors; arguments as for :func:`test`."""
    outputs = _evaluate("predict", recipe, **order)
    if outputs and all(isinstance(output, torch.Tensor) for output in outputs):
        return torch.cat(outputs)
    return outputs


def _evaluate(kind: str, recipe: Source | Run, **order: Any) -> Any:
    if isinstance(recipe, Run):
        if order:
            raise UserError(f"{kind}(run): a finished run takes no further arguments; received {', '.join(order)}")
        options = {**recipe.recipe.trainer}
        return _ask(kind, recipe.core, recipe.recipe, options, None)
    return _evaluate_folder(kind, recipe, **order)


def _evaluate_folder(
    kind: str,
    source: Source,
    *,
    ckpt: str | Path = "best",
    run: str | Path | None = None,
    seed: int | None = None,
    parameters: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    with_: Additions = (),
    without: Iterable[str] = (),
    logs: str | Path = "lightning_logs",
) -> Any:
    name = _Order(source, 0, None, None, None, (), ()).name
    folder = RunFolder(Path(run)) if run is not None else RunFolder.newest(Path(logs), name)
    record = folder.read()
    order = _Order(
        source,
        record["seed"] if seed is None else seed,
        {**record["parameters"], **(parameters or {})},
        trainer,
        {**as_text(record["settings"]), **(settings or {})},
        [*((name, as_text(given)) for name, given in record["with"]), *with_],
        [*record["without"], *without],
    )
    built = order.build()
    core = built.make_core(order.seed, order.options(built))
    path = folder.checkpoint(str(ckpt))
    result = _ask(kind, core, built, order.options(built), path)
    if kind != "predict":
        folder.update(**{kind: {"ckpt": str(ckpt), **result}})
    return result


def _ask(kind: str, core: Core, recipe: Recipe, options: Mapping[str, Any], path: Path | None) -> Any:
    chosen = {k: v for k, v in lightning_options(options).items() if k in _MACHINE or k.startswith("limit_")}
    chosen |= {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = make_lightning_trainer({**chosen, "enable_progress_bar": False}, as_callbacks(recipe.plugins))
    with quiet():
        try:
            if kind == "predict":
                return trainer.predict(core, ckpt_path=path)
            ask = trainer.validate if kind == "validate" else trainer.test
            ask(core, ckpt_path=path, verbose=False)
        except MisconfigurationException as error:
            raise UserError(_one_line(error)) from error
        finally:
            core.close_loaders()
            core.leave_evaluation()
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# options that say on what to evaluate; the rest of the Trainer's options is about training
_MACHINE = ("accelerator", "devices", "num_nodes", "strategy", "precision")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
