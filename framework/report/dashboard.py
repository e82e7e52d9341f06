"""What TensorBoard shows besides curves: charts of several curves, weights, inputs, hyperparameters."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from framework.data.batch import input_of
from framework.data.loaders import TrainLoader
from framework.ops.patterns import is_weight
from framework.ops.shards import locals_of
from framework.report.pictures import grid, is_pictures, raw_pictures, span
from framework.settings import plain

if TYPE_CHECKING:
    from framework.engine.core import Core

Layout = dict[str, dict[str, list[Any]]]

_PICTURES = 32
_SAMPLED = 1 << 16  # numbers of a weight that its histogram is made of
_BINS = 64


class Dashboard(pl.Callback):
    """Writes, beside the curves that the recorder logs, what makes a run easy to judge in TensorBoard.

    - Custom Scalars: training against validation in one chart, J against the objective, all penalties, the gap, …
    - Histograms of the weights: at the start, every few epochs, and at the end. A histogram is made of 65,536 numbers
      of a weight at most, so that all of them take less than a second for a network of any size.
    - Images: the first training batch as the network gets it, and the same samples as the data set gives them, where
      inputs look like images: ``(N, C, H, W)`` with one channel or three.
    - ``best/<metric>``: what validation gave at the best epoch so far, by the monitored metric.
    - HParams: the recipe's parameters and the plugins' settings, with the last value of each curve.

    It draws no random numbers and does nothing in a step but the first. Loggers other than ``TensorBoardLogger`` are
    left alone.

    Args:
        parameters: what the run was made with, such as the recipe's parameters.
        monitor: the metric by which an epoch is best.
        mode: ``"min"`` or ``"max"``: which way it is better.
        histogram_every_n_epochs: epochs between histograms, 0 for none.
        images: show inputs.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any] | None = None,
        *,
        monitor: str = "val/loss",
        mode: str = "min",
        histogram_every_n_epochs: int = 5,
        images: bool = True,
    ) -> None:
        self._parameters = dict(parameters or {})
        self._monitor, self._choose = monitor, min if mode == "min" else max
        self._every = histogram_every_n_epochs
        self._images = images
        self._writers: list[SummaryWriter] = []
        self._begun = False
        self._laid_out = False
        self._histogram_at = -1

    @property
    def state_key(self) -> str:
        """The key in checkpoints."""
        return "dashboard"

    def state_dict(self) -> dict[str, Any]:
        """Return what has been written once, and is not to be written anew where a run goes on."""
        return {"begun": self._begun, "laid_out": self._laid_out, "histogram_at": self._histogram_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it."""
        self._begun, self._laid_out = state_dict["begun"], state_dict["laid_out"]
        self._histogram_at = state_dict["histogram_at"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find TensorBoard's writers."""
        if trainer.is_global_zero:
            self._writers = [one.experiment for one in trainer.loggers if isinstance(one, TensorBoardLogger)]
        self._start, self._end = session(hyperparameters(cast("Core", pl_module), self._parameters))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the hyperparameters, the initial weights, and wait for the first batch; not where a run goes on."""
        core = cast("Core", pl_module)
        if self._begun or not self._writers:
            return
        self._begun = True
        self._write(self._start)
        self._write_weights(core, trainer.global_step)
        if self._images:
            core.gradient.watch = lambda batch: self._see(core, batch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is due of the epoch before, all of whose values are known by now."""
        core = cast("Core", pl_module)
        if self._writers:
            self._lay_out(core)
            if self._every and trainer.current_epoch % self._every == 0:
                self._write_weights(core, core.at.index)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the best metrics so far; in HParams, which shows last values in order of name, they come first."""
        entries = cast("Core", pl_module).recorder.history
        history = [one for one in entries if not math.isnan(one.metrics.get(self._monitor, math.nan))]
        if trainer.sanity_checking or not history:
            return
        best = self._choose(history, key=lambda one: one.metrics[self._monitor])
        for tag, value in best.metrics.items():
            if tag.startswith("val/"):
                for writer in self._writers:
                    writer.add_scalar(f"best/{tag[4:]}", value, entries[-1].step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final weights and the end of the session.

        Not where training ends: a run that goes on from after its last step does not begin to train.
        """
        core = cast("Core", pl_module)
        if self._writers:
            self._lay_out(core, last=True)
            self._write_weights(core, core.at.index)
            self._write(self._end)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the charts of a run that was cut short; that its session has no end tells the rest."""
        if self._writers:
            self._lay_out(cast("Core", pl_module), last=True)

    def _lay_out(self, core: Core, *, last: bool = False) -> None:
        """Write the charts, once it is known what is logged: TensorBoard reads only one layout of a run."""
        known = core.recorder.latest
        if not self._laid_out and (last or "train/loss" in known):
            self._laid_out = True
            for writer in self._writers:
                writer.add_custom_scalars(layout(known))

    def _write_weights(self, core: Core, step: int) -> None:
        if not self._every or step == self._histogram_at:
            return
        self._histogram_at = step
        for prefix, layer in core.model.named_modules():
            for name, weight in layer.named_parameters(recurse=False):
                if is_weight(layer, name, weight):
                    flat = locals_of([weight.detach()])[0].flatten()  # of a sharded weight rank zero's part
                    sample = flat[:: -(-flat.numel() // _SAMPLED) or 1].float().cpu()
                    finite = sample[sample.isfinite()]
                    tag = f"weights/{prefix}.{name}".removesuffix(".weight")
                    for writer in self._writers if len(finite) else ():
                        writer.add_histogram(tag, finite, step, bins=_BINS)

    def _see(self, core: Core, batch: Any) -> None:
        """Show the first micro-batch, and look no more."""
        core.gradient.watch = None
        inputs = input_of(batch)
        if not is_pictures(inputs):
            return
        seen = inputs[:_PICTURES].detach().cpu()
        loader = core.trainer.train_dataloader
        raw = raw_pictures(loader, len(seen)) if isinstance(loader, TrainLoader) else None
        # of one scale where they can be: a change of brightness is to show
        same = raw is not None and raw.dtype == seen.dtype and raw.shape == seen.shape
        answers = core.answers
        changed = answers.of("transform_sample") or answers.of("transform_batch")
        tag = "inputs/augmented" if changed else "inputs/raw"
        shown = {tag: (seen, span(raw if same and raw is not None else seen))}
        if raw is not None and changed:
            shown["inputs/raw"] = (raw, span(raw))
        for tag, (pictures, (low, high)) in shown.items():
            for writer in self._writers:
                writer.add_image(tag, grid(pictures, low, high), core.at.index)

    def _write(self, summaries: Iterable[Any]) -> None:
        for writer in self._writers:
            for summary in summaries:
                writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]


def layout(tags: Iterable[str]) -> Layout:
    """Return TensorBoard's charts of several curves for the tags that a run logs.

    TensorBoard joins the layouts of all runs chart by chart, so that a chart has the same patterns in each.

    Example:
        >>> layout(["train/loss", "val/loss", "lr"])["1 Training and validation"]
        {'loss': ['Multiline', ['^(train|val)/loss$']]}
    """
    known = set(tags)
    names = {tag.partition("/")[2] for tag in known if tag.startswith(("train/", "val/"))} - {"objective"}
    metrics = sorted(names, key=lambda name: (name != "loss", name))
    charts = {
        "1 Training and validation": {name: f"^(train|val)/{re.escape(name)}$" for name in metrics},
        "2 Objective": {"J and objective": "^train/(loss|objective)$", "penalties": "^penalty/"},
        "3 Validation minus training": {f"gap in {name}": f"^gap/{re.escape(name)}$" for name in metrics},
        "4 Optimization": {"learning rate": "^lr(/|$)", "gradient norm": "^grad_norm$"},
        "5 Sparsity": {"sparsity by layer": "^sparsity/"},
    }
    present = {
        category: {title: ["Multiline", [regex]] for title, regex in wanted.items() if _any_match(regex, known)}
        for category, wanted in charts.items()
    }
    return {category: of_category for category, of_category in present.items() if of_category}


def _any_match(regex: str, tags: Iterable[str]) -> bool:
    return any(re.match(regex, tag) for tag in tags)


def hyperparameters(core: Core, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells runs apart: the parameters, who plugs in, and settings that differ from their defaults.

    Example:
        >>> from torch import nn
        >>> from framework import Core
        >>> hyperparameters(Core(nn.Linear(2, 1), seed=3), {"width": 12})
        {'width': 12, 'seed': 3, 'plugins': 'none'}
    """
    # a setting that one run lacks is no difference to TensorBoard, which shows columns that differ first
    found = {**parameters, "seed": core.seed, "plugins": ", ".join(plugin.name for plugin in core.plugins) or "none"}
    for plugin in core.plugins:
        for field in dataclasses.fields(plugin):
            value = plugin.declared_.get(field.name)
            if field.name != "name" and not _is_default(field, value):
                found[f"{plugin.name}.{field.name}"] = value
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in found.items()}


def session(values: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return the summaries that begin and end a run in TensorBoard's HParams tab.

    ``SummaryWriter.add_hparams`` would write them as a run of its own. The summary of the experiment is left out:
    TensorBoard takes the first that it finds for all runs, and hides what later runs have besides; without it, it takes
    the columns of all.
    """
    _, start, end = hparams(dict(values), {})  # type: ignore[no-untyped-call]
    return [start], [end]


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == plain(field.default_factory()))
    return field.default is not dataclasses.MISSING and bool(value == plain(field.default))
