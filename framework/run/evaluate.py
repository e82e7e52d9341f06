"""Evaluate finished runs: ``validate``, ``test`` and ``predict``."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info

from framework.checkpoint.folder import RunFolder
from framework.checkpoint.weights import core_with_weights
from framework.engine.core import Core
from framework.errors import UserError
from framework.plugin.plugin import Plugin
from framework.recipe.recipe import Recipe
from framework.recipe.spec import Additions, RunSpec, Source
from framework.run.caller import as_alone
from framework.run.faults import faults
from framework.run.quiet import quiet
from framework.run.result import Run
from framework.run.trainer import evaluating_trainer, refusals


def validate(recipe: Source | Run, **overrides: Any) -> dict[str, float]:
    """Return the metrics on the validation part; see :func:`test` for the arguments."""
    metrics: dict[str, float] = _evaluate("validate", recipe, **overrides)
    return metrics


def test(recipe: Source | Run, **overrides: Any) -> dict[str, float]:
    """Return the metrics on the test part.

    Args:
        recipe: a :class:`Run`, which is evaluated with its final parameters, or what :func:`framework.fit` takes.
        **overrides: ``ckpt``: ``"best"`` (default), ``"last"``, or the path of a checkpoint or of ``FILE.safetensors``;
            ``run``: the run's folder, by default the recipe's newest in ``logs``; ``seed``, ``parameters``,
            ``settings``, ``with_`` and ``without`` as for :func:`framework.fit`, which override those of the run;
            ``trainer``: options that override the recipe's, except for those about training; ``logs``: folder of all
            runs.

    Raises:
        UserError: if there is no such run, checkpoint or data part.
    """
    metrics: dict[str, float] = _evaluate("test", recipe, **overrides)
    return metrics


def predict(recipe: Source | Run, **overrides: Any) -> Any:
    """Return the network's outputs on the test part, concatenated if they are tensors; see :func:`test`."""
    outputs = _evaluate("predict", recipe, **overrides)
    if outputs and all(isinstance(output, torch.Tensor) for output in outputs):
        return torch.cat(outputs)
    return outputs


@as_alone()
def _evaluate(kind: str, recipe: Source | Run, **overrides: Any) -> Any:
    if isinstance(recipe, Run):
        if overrides:
            raise UserError(f"{kind}(run): a Run takes no further arguments; received {', '.join(overrides)}")
        options = {**recipe.recipe.trainer}
        _tell_of_weights(kind, recipe)
        with as_alone(recipe.core.seed):
            return run_trainer(kind, recipe.core, recipe.recipe, options, None)
    return _evaluate_folder(kind, recipe, **overrides)


def _tell_of_weights(kind: str, run: Run) -> None:
    """Warn if a run's network is not that of the best epoch, of which ``run.metrics`` are."""
    restored = any(isinstance(one, Plugin) and one.restores_best for one in run.recipe.plugins)
    if run.best_epoch is None or run.best_epoch + 1 == run.epochs or restored or run.phases:
        return
    better = (
        f"{kind}(recipe, run=run.folder)" if run.folder is not None else "train with logs=..., which keeps best.ckpt,"
    )
    warnings.warn(
        f"{kind}(run): the weights of the last epoch ({run.epochs}) are evaluated; run.metrics are of the best epoch"
        f" ({run.best_epoch + 1}): {better} or add EarlyStopping, which restores its weights",
        stacklevel=5,
    )


def _evaluate_folder(kind: str, source: Source, *, ckpt: str | Path = "best", **overrides: Any) -> Any:
    found = trained(source, ckpt=ckpt, **overrides)
    rank_zero_info(f"{kind}: {found.checkpoint or ckpt}")
    result = run_trainer(kind, found.core, found.recipe, found.options, found.checkpoint)
    if kind != "predict":
        found.folder.update(**{kind: {"ckpt": str(ckpt), **result}})
    return result


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run, as found in its folder.

    Args:
        name: the recipe's name.
        recipe: the recipe, edits applied.
        core: a core of the recipe; its weights are still to be loaded, if there is a checkpoint.
        options: the Trainer's options.
        folder: the run's folder.
        checkpoint: the checkpoint, None if the core has the weights of a file without more.
    """

    name: str
    recipe: Recipe
    core: Core
    options: dict[str, Any]
    folder: RunFolder
    checkpoint: Path | None


def trained(
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
) -> Trained:
    """Find a finished run in its folder; arguments as for :func:`test`.

    Raises:
        UserError: if there is no such run or checkpoint.
    """
    spec = RunSpec(source, seed, parameters, trainer, settings, with_, without)
    folder = RunFolder(Path(run)) if run is not None else RunFolder.newest(Path(logs), spec.name)
    spec.on_top_of(folder.read(), training=False)
    built = spec.build()
    options = spec.options(built)
    if Path(ckpt).suffix == ".safetensors":
        make = functools.partial(built.make_core, spec.seed, options)
        core = core_with_weights(built.model, make, ckpt, argument="ckpt")
        return Trained(spec.name, built, core, options, folder, None)
    core = built.make_core(spec.seed, options)
    return Trained(spec.name, built, core, options, folder, folder.checkpoint(str(ckpt)))


def run_trainer(
    kind: str,
    core: Core,
    recipe: Recipe,
    options: Mapping[str, Any],
    path: Path | None,
    callbacks: Sequence[pl.Callback] = (),
) -> Any:
    """Evaluate a core by Lightning's ``Trainer`` and return the metrics, or the outputs.

    Args:
        kind: ``"validate"``, ``"test"`` or ``"predict"``.
        core: the core.
        recipe: its recipe.
        options: the Trainer's options.
        path: checkpoint to load first, None for the core's own weights.
        callbacks: further callbacks.
    """
    trainer = evaluating_trainer(recipe, options, callbacks)
    with quiet(), refusals(), faults(core):
        try:
            if kind == "predict":
                return trainer.predict(core, ckpt_path=path)
            method = trainer.validate if kind == "validate" else trainer.test
            method(core, ckpt_path=path, verbose=False)
        finally:
            core.close_loaders()
            core.leave_evaluation()
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
