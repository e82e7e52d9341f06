"""``soup``: the mean of the weights of several runs."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from framework.checkpoint.atomic import output_file
from framework.checkpoint.weights import weights_in
from framework.engine.core import Core
from framework.errors import UserError
from framework.ops.keyed import key_of
from framework.plugin.running import estimate, norms_of
from framework.recipe.spec import Source
from framework.run.caller import as_alone
from framework.run.evaluate import run_trainer, trained
from framework.run.export import export

_BATCHES = 32  # of the training part, for the statistics of batch norms

State = Mapping[str, Tensor]


def mean_of(states: Sequence[State]) -> dict[str, Tensor]:
    r"""Return the mean of networks' weights, :math:`\bar\theta = \frac1k \sum_i \theta_i`, computed in float64.

    Numbers that are no floats, such as counters of batch norms, are those of the first.

    Args:
        states: weights by name, of the same names and shapes.

    Example:
        >>> mean_of([{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])}])
        {'w': tensor([2., 3.])}
    """
    first = states[0]
    mean = {name: value.clone() for name, value in first.items()}
    for name, value in first.items():
        if value.is_floating_point():
            total = sum((state[name].double() for state in states[1:]), value.double())
            mean[name] = (total / len(states)).to(value.dtype)
    return mean


@dataclasses.dataclass(frozen=True)
class Soup:
    """The mean of the weights of several runs.

    Args:
        metrics: the mean's metrics on the validation part.
        ingredients: metrics on the validation part of each run, by its folder.
        used: folders of the runs whose weights are in the mean.
        out: the file.
    """

    metrics: dict[str, float]
    ingredients: dict[Path, dict[str, float]]
    used: list[Path]
    out: Path


@as_alone()
def soup(
    recipe: Source,
    runs: Sequence[str | Path],
    *,
    out: str | Path,
    greedy: bool = False,
    trainer: Mapping[str, Any] | None = None,
) -> Soup:
    """Write the mean of the weights that several runs of a recipe evaluate with, at their best epochs.

    Runs that began with the same weights, such as pretrained ones, and differ in settings or seed often lie in one
    basin, whose middle generalizes better than each. Running statistics of batch norms are measured again over training
    batches. ``greedy``: the runs are sorted by the monitored metric on the validation part, and one after the other is
    added if that does not get worse.

    Args:
        recipe: what :func:`framework.fit` takes.
        runs: the runs' folders, at least two.
        out: the file, ``FILE.safetensors``, for ``fit(weights=FILE)`` and ``test(ckpt=FILE)``.
        greedy: add only what helps.
        trainer: options of the Trainer.

    Raises:
        UserError: if a run is of another network, has no best checkpoint, or there are fewer than two.

    Source: Wortsman et al. (2022), Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time.
    """
    folders = [Path(run) for run in runs]
    if len(set(folders)) < 2:
        raise UserError(f"soup: {len(set(folders))} run given; give the folders of at least two")
    if Path(out).suffix != ".safetensors":
        raise UserError(f"out={str(out)!r}: must end with .safetensors")
    states = {folder: _weights(recipe, folder) for folder in folders}
    for folder, state in states.items():
        shapes = {name: value.shape for name, value in states[folders[0]].items()}
        if {name: value.shape for name, value in state.items()} != shapes:
            raise UserError(f"soup: {folder} is of another network than {folders[0]}")
    measure = _Measure(recipe, folders[0], trainer)
    found = {folder: measure([state])[0] for folder, state in states.items()}
    used = folders
    if greedy:
        sign = 1.0 if measure.mode == "min" else -1.0
        used, best = [], math.inf
        for folder in sorted(folders, key=lambda one: sign * found[one][measure.monitor]):
            value = sign * measure([states[one] for one in (*used, folder)])[0][measure.monitor]
            if value <= best:
                used, best = [*used, folder], value
    metrics, state = measure([states[one] for one in used])
    with output_file(Path(out), "out") as draft:
        save_file(state, draft, {"format": "pt", "soup": ", ".join(map(str, used))})
    return Soup(metrics, found, used, Path(out))


def _weights(recipe: Source, folder: Path) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "weights.safetensors"
        export(recipe, file, run=folder)
        return weights_in(file)


class _Measure:
    """Validates means of weights, in the setting of one of the runs."""

    def __init__(self, recipe: Source, folder: Path, trainer: Mapping[str, Any] | None) -> None:
        self._recipe, self._folder, self._trainer = recipe, folder, trainer
        built = trained(recipe, run=folder).recipe
        self.monitor, self.mode = str(built.monitor), built.mode

    def __call__(self, states: Sequence[State]) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Return the metrics of the mean, and its weights with running statistics of their own."""
        mean = mean_of(states)
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "mean.safetensors"
            save_file({name: value.clone() for name, value in mean.items()}, file)
            found = trained(self._recipe, run=self._folder, ckpt=file, trainer=self._trainer)
        renewed = [] if len(states) == 1 else [_Statistics()]
        metrics = run_trainer("validate", found.core, found.recipe, found.options, None, renewed)
        own = found.core.model.state_dict() if renewed else {}
        return metrics, {name: own.get(name, value).detach().cpu().contiguous() for name, value in mean.items()}


class _Statistics(pl.Callback):
    """Measures the running statistics again before the validation."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute them."""
        core = cast("Core", pl_module)
        with torch.inference_mode(False), torch.no_grad(), core.as_in_training():
            if norms := norms_of(core.model):
                estimate(core, norms, _BATCHES, key_of(core.seed, "soup"))
