"""Evaluation of finished runs: ``validate``, ``test`` and ``predict``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from framework.checkpoint.folder import RunFolder
from framework.engine.core import Core
from framework.errors import UserError
from framework.recipe.recipe import Recipe
from framework.recipe.spec import Additions, Order, Source
from framework.run.faults import faults
from framework.run.fit import Run
from framework.run.quiet import quiet
from framework.run.trainer import evaluating_trainer, refusals


def validate(recipe: Source | Run, **order: Any) -> dict[str, float]:
    """Return the metrics on the validation part; see :func:`test` for the arguments."""
    metrics: dict[str, float] = _evaluate("validate", recipe, **order)
    return metrics


def test(recipe: Source | Run, **order: Any) -> dict[str, float]:
    """Return the metrics on the test part.

    Args:
        recipe: a :class:`Run`, evaluated with the parameters that it handed back, or what :func:`fit` takes.
        **order: ``ckpt``: ``"best"`` (default), ``"last"`` or a path; ``run``: the run's folder, by default the newest
            of that recipe in ``logs``; ``seed``, ``parameters``, ``settings``, ``with_`` and ``without`` as for
            :func:`framework.fit`, on top of those of the run; ``trainer``, options on top of the recipe's, of which
            those count that say on what to run; ``logs``.

    Raises:
        UserError: where there is no such run, checkpoint or data part.
    """
    metrics: dict[str, float] = _evaluate("test", recipe, **order)
    return metrics


def predict(recipe: Source | Run, **order: Any) -> Any:
    """Return the network's outputs on the test part, joined where they are tensors; arguments as for :func:`test`."""
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


def _evaluate_folder(kind: str, source: Source, *, ckpt: str | Path = "best", **order: Any) -> Any:
    found = trained(source, ckpt=ckpt, **order)
    result = _ask(kind, found.core, found.recipe, found.options, found.checkpoint)
    if kind != "predict":
        found.folder.update(**{kind: {"ckpt": str(ckpt), **result}})
    return result


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that is over, found in its folder.

    Args:
        name: the recipe's name.
        recipe: the recipe as it was run.
        core: a core of it, whose weights the checkpoint has.
        options: the Trainer's options.
        folder: the run's folder.
        checkpoint: the checkpoint.
    """

    name: str
    recipe: Recipe
    core: Core
    options: dict[str, Any]
    folder: RunFolder
    checkpoint: Path


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
    """Return a run that is over; arguments as for :func:`test`.

    Raises:
        UserError: where there is no such run or checkpoint.
    """
    order = Order(source, seed, parameters, trainer, settings, with_, without)
    folder = RunFolder(Path(run)) if run is not None else RunFolder.newest(Path(logs), order.name)
    order.on_top_of(folder.read(), training=False)
    built = order.build()
    options = order.options(built)
    core = built.make_core(order.seed, options)
    return Trained(order.name, built, core, options, folder, folder.checkpoint(str(ckpt)))


def _ask(kind: str, core: Core, recipe: Recipe, options: Mapping[str, Any], path: Path | None) -> Any:
    trainer = evaluating_trainer(recipe, options)
    with quiet(), refusals(), faults(core):
        try:
            if kind == "predict":
                return trainer.predict(core, ckpt_path=path)
            ask = trainer.validate if kind == "validate" else trainer.test
            ask(core, ckpt_path=path, verbose=False)
        finally:
            core.close_loaders()
            core.leave_evaluation()
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
