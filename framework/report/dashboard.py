"""TensorBoard besides single curves: charts of several curves, histograms of weights, inputs, hyperparameters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from framework.checkpoint.curves import scalars
from framework.data.batch import input_of
from framework.data.loaders import TrainLoader
from framework.errors import UserError
from framework.ops.patterns import is_weight
from framework.ops.shards import locals_of
from framework.report.pictures import grid, is_pictures, raw_pictures, span
from framework.report.telling import telling
from framework.settings import is_default

if TYPE_CHECKING:
    from framework.engine.core import Core

Layout = dict[str, dict[str, list[Any]]]

_PICTURES = 32
_SAMPLED = 1 << 16  # maximal number of entries of a weight in its histogram
_BINS = 64


class Dashboard(pl.Callback):
    """Lightning callback that writes to TensorBoard what helps to judge a run, besides the curves of the recorder.

    - Custom Scalars: training against validation in one chart, J against the objective, all penalties, the gap, …
    - Histograms of the weights: at the start, every few epochs, and at the end. A histogram samples at most 65,536
      entries of a weight, so that all of them take less than a second for a network of any size.
    - Images: the first training batch as the network receives it, and the same samples as the data set returns them, if
      inputs look like images: ``(N, C, H, W)`` with one channel or three.
    - ``best/<metric>``: the validation metrics at the best epoch so far, by the monitored metric.
    - HParams: the recipe's parameters and the plugins' settings, with the last value of each curve.

    It draws no random numbers and does nothing in steps after the first. Loggers other than ``TensorBoardLogger`` are
    ignored.

    Args:
        parameters: hyperparameters of the run, such as the recipe's parameters.
        histogram_every_n_epochs: epochs between histograms, 0 for none.
        images: write images of the inputs.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any] | None = None,
        *,
        histogram_every_n_epochs: int = 5,
        images: bool = True,
    ) -> None:
        self._parameters = dict(parameters or {})
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
        """Return what was already written, so that a resumed run does not write it again."""
        return {"begun": self._begun, "laid_out": self._laid_out, "histogram_at": self._histogram_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what was already written."""
        self._begun, self._laid_out = state_dict["begun"], state_dict["laid_out"]
        self._histogram_at = state_dict["histogram_at"]

    @telling
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find TensorBoard's writers."""
        if trainer.is_global_zero:
            self._writers = [one.experiment for one in trainer.loggers if isinstance(one, TensorBoardLogger)]
        self._start, self._end = session(hyperparameters(cast("Core", pl_module), self._parameters))

    @telling
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write hyperparameters and initial weights and wait for the first batch, unless the run is resumed."""
        core = cast("Core", pl_module)
        if self._begun or not self._writers:
            return
        self._begun = True
        self._write(self._start)
        self._write_weights(core, trainer.global_step)
        if self._images:
            core.gradient.watch = lambda batch: self._write_inputs(core, batch)

    @telling
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the charts and histograms of the previous epoch, whose values are complete only now."""
        core = cast("Core", pl_module)
        if self._writers:
            self._lay_out(core)
            if self._every and trainer.current_epoch % self._every == 0:
                self._write_weights(core, core.at.index)

    @telling
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the best metrics so far; in HParams, which sorts tags by name, they come first."""
        recorder = cast("Core", pl_module).recorder
        if trainer.sanity_checking or (best := recorder.best) is None:
            return
        values = {f"best/{tag[4:]}": value for tag, value in best.metrics.items() if tag.startswith("val/")}
        for writer in self._writers:
            writer._get_file_writer().add_summary(scalars(values), recorder.history[-1].step)  # type: ignore[no-untyped-call]

    @telling
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final weights and the end of the session.

        ``on_train_end`` would not do: it is not called for a run that is resumed after its last step.
        """
        core = cast("Core", pl_module)
        if self._writers:
            self._lay_out(core, last=True)
            self._write_weights(core, core.at.index)
            self._write(self._end)

    @telling
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the charts of a run that failed; its HParams session stays without an end."""
        if self._writers:
            self._lay_out(cast("Core", pl_module), last=True)

    def _lay_out(self, core: Core, *, last: bool = False) -> None:
        """Write the layout of the charts once all tags are known: TensorBoard reads only one layout of a run."""
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
                    flat = locals_of([weight.detach()])[0].flatten()  # of a sharded weight the shard of rank zero
                    sample = flat[:: -(-flat.numel() // _SAMPLED) or 1].float().cpu()
                    finite = sample[sample.isfinite()]
                    tag = f"weights/{prefix}.{name}".removesuffix(".weight")
                    for writer in self._writers if len(finite) else ():
                        writer.add_histogram_raw(tag, **histogram(finite), global_step=step)

    @telling
    def _write_inputs(self, core: Core, batch: Any) -> None:
        """Write images of the first micro-batch, then stop watching batches."""
        core.gradient.watch = None
        try:
            inputs = input_of(batch)
        except UserError:  # a batch that only the user's own step can read
            return
        if not is_pictures(inputs):
            return
        seen = inputs[:_PICTURES].detach().cpu()
        loader = core.trainer.train_dataloader
        raw = raw_pictures(loader, len(seen)) if isinstance(loader, TrainLoader) else None
        # on one scale if possible, so that a change of brightness is visible
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


def histogram(values: Tensor) -> dict[str, Any]:
    """Return what ``SummaryWriter.add_histogram_raw`` takes, several times as fast as ``add_histogram`` finds it.

    Args:
        values: finite numbers, at least one; of one value, the bins are around it.
    """
    values = values.double()  # in which sums of the entries' squares are exact enough
    counts, edges = torch.histogram(values, _BINS)
    low, high = values.aminmax()
    return {
        "min": low.item(),
        "max": high.item(),
        "num": len(values),
        "sum": values.sum().item(),
        "sum_squares": values.dot(values).item(),
        "bucket_limits": edges.tolist(),  # TensorBoard knows only the bins' right ends: an empty bin has the first one
        "bucket_counts": [0.0, *counts.tolist()],
    }


def layout(tags: Iterable[str]) -> Layout:
    """Return the layout of TensorBoard's Custom Scalars for the tags that a run logs.

    TensorBoard merges the layouts of all runs by chart, so each chart has the same patterns in every run.

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
    """Return the hyperparameters of a run: parameters, seed, plugins, and settings that differ from their defaults.

    Example:
        >>> from torch import nn
        >>> from framework.engine.core import Core
        >>> hyperparameters(Core(nn.Linear(2, 1), seed=3), {"width": 12})
        {'width': 12, 'seed': 3, 'plugins': 'none'}
    """
    # TensorBoard shows columns that differ first, and counts a setting that one run lacks as no difference
    found = {**parameters, "seed": core.seed, "plugins": ", ".join(plugin.name for plugin in core.plugins) or "none"}
    for plugin in core.plugins:
        for field in dataclasses.fields(plugin):
            value = plugin.declared_.get(field.name)
            if field.name != "name" and not is_default(field, value, as_plain=True):
                found[f"{plugin.name}.{field.name}"] = value
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in found.items()}


def session(values: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return the summaries that start and end a run's session in TensorBoard's HParams tab.

    ``SummaryWriter.add_hparams`` would write them as a separate run. The summary of the experiment is left out:
    TensorBoard uses the first one that it finds for all runs and hides columns that only later runs have; without it,
    it shows the columns of all runs.
    """
    _, start, end = hparams(dict(values), {})  # type: ignore[no-untyped-call]
    return [start], [end]
