"""Running means of loss, penalties and metrics, and logging."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from framework.data.outcome import Outcome
from framework.engine.history import Entry, best_of
from framework.engine.meter import Meter, scalars
from framework.engine.metrics import check_number, check_records, check_terms, restore_metric, state_of_metric
from framework.engine.nonfinite import explain_evaluation
from framework.engine.objective import Objective
from framework.engine.uncounted import Uncounted, check_epoch, terms_in_words
from framework.plugin.step import Step

_STAGES = ("train", "val", "test")
_HELD = 1 << 20  # the training metrics are updated once this many predicted numbers are buffered


class Recorder:
    """Keeps running means on the device and passes them to the loggers every ``log_every_n_steps`` steps.

    Lightning's ``self.log`` takes some 0.6 ms per call and is not used: metrics for callbacks are written to
    ``trainer.callback_metrics`` directly.

    J and the terms of micro-batches are logged as means over the steps since the last log, terms on weights as their
    current values, and the objective as the sum of all.

    Args:
        objective: the objective of the run.
        metrics: torchmetrics by name.
        monitor: tag of the metric that determines the best entry of the history.
        mode: ``"min"`` or ``"max"``: whether lower or higher values are better.

    Attributes:
        latest: the last value of each tag, as a number.
        history: one entry per validation, and one per epoch without one at its end; see :attr:`kept`.
        uncounted: counts the batches without a loss.
    """

    def __init__(self, objective: Objective, metrics: Mapping[str, Metric], monitor: str, mode: str) -> None:
        self._objective = objective
        self.monitor, self._mode = monitor, mode
        self._metrics = {stage: {name: metric.clone() for name, metric in metrics.items()} for stage in _STAGES}
        self._meters = {stage: Meter() for stage in _STAGES}
        self._epoch: dict[str, tuple[float, float]] = {}
        self._held: list[tuple[Tensor, Tensor]] = []
        self._held_numbers = 0
        self._log_every = 0
        self._pending: list[tuple[Mapping[str, Tensor], float] | Outcome] | None = None
        self.validated = self._told = False
        self.uncounted = Uncounted()
        self.latest: dict[str, float] = {}
        self.history: list[Entry] = []

    # ---- training ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Determine how often to log; called once training starts."""
        trainer = self._objective.trainer
        # at least once per epoch, or short epochs would have no training curve
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._log_every = int(min(every, trainer.num_training_batches)) if trainer.loggers else 0
        for metric in self._metrics["train"].values():
            metric.to(self._objective.device)

    def begin_epoch(self) -> None:
        """Reset the means of the epoch."""
        self.validated = False
        self._epoch = {}

    def begin_step(self, step: Step) -> None:
        """Set ``step.logged``: whether the step's values go to the loggers."""
        step.logged = self._log_every > 0 and (step.index + 1) % self._log_every == 0
        if step.logged:
            step.records = {}

    def add(self, terms: Mapping[str, Tensor], size: float) -> None:
        """Add J and the terms of one micro-batch to the means, weighted by its size."""
        if self._objective.at.again:
            return
        if self._pending is not None:
            self._pending.append(({tag: term.detach() for tag, term in terms.items()}, size))
            return
        meter = self._meters["train"]
        for tag, term in terms.items():
            meter.add(tag, term.detach(), size)

    def see(self, outcome: Outcome) -> None:
        """Buffer predictions for the training metrics: an update takes longer than the step of a small network."""
        check_terms(outcome.terms, self._metrics["train"])
        if not self._metrics["train"] or outcome.prediction is None or self._objective.at.again:
            return
        prediction, target = outcome.prediction, outcome.target
        prediction = prediction.detach() if isinstance(prediction, Tensor) else prediction
        if self._pending is not None:
            self._pending.append(Outcome(None, prediction, target))
            return
        if not isinstance(prediction, Tensor) or not isinstance(target, Tensor) or not prediction.ndim * target.ndim:
            for metric in self._metrics["train"].values():
                metric.update(prediction, target)
            return
        if self._held and self._held[0][0].shape[1:] != prediction.shape[1:]:
            self._show()
        self._held.append((prediction, target))
        self._held_numbers += prediction.numel()
        if self._held_numbers > _HELD:
            self._show()

    def hold(self) -> None:
        """Start to keep additions apart, until it is known whether the step is skipped."""
        self._pending = []

    def release(self, *, keep: bool) -> None:
        """Stop keeping additions apart, and record (``keep``) or discard them."""
        pending, self._pending = self._pending or [], None
        for entry in pending if keep else []:
            if isinstance(entry, Outcome):
                self.see(entry)
            else:
                self.add(*entry)

    def _show(self) -> None:
        if self._held:
            predictions, targets = zip(*self._held, strict=True)
            for metric in self._metrics["train"].values():
                metric.update(torch.cat(predictions), torch.cat(targets))
            self._held, self._held_numbers = [], 0

    def _read(self) -> dict[str, float]:
        """Return the means since the last call and add them to those of the epoch."""
        means, weights = self._meters["train"].means(over_ranks=self._objective.at.world > 1)
        for tag, mean in means.items():
            total, weight = self._epoch.get(tag, (0.0, 0.0))
            self._epoch[tag] = (total + mean * weights[tag], weight + weights[tag])
        return means

    def write_step(self, step: Step, terms: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        """Log a step: means since the last log, terms on weights, learning rates and the plugins' records.

        Args:
            step: the current step.
            terms: values of the terms on weights by tag.
            rates: learning rates by tag.
        """
        means = self._read()
        values: dict[str, Tensor | float] = {tag: mean for tag, mean in means.items() if tag != "loss"}
        values.update(terms)
        if step.records:
            own = {f"{stage}/{name}" for stage in (*_STAGES, "gap") for name in ("loss", *self._metrics["train"])}
            check_records(step.records, own | {"train/objective", "train/skipped_steps"} | {*values, *rates})
        read = scalars({**values, **step.records})
        if step.skipped:
            read["train/skipped_steps"] = float(step.skipped)
        if "loss" in means:
            penalties = sum(value for tag, value in read.items() if tag in values and not tag.startswith("train/"))
            read = {"train/loss": means["loss"], "train/objective": means["loss"] + penalties, **read}
        self.log({**read, **rates})

    def end_epoch(self) -> None:
        """Publish the epoch's means and metrics to callbacks, and metrics and the generalization gap to the loggers."""
        self._read()
        step = self._objective.at
        check_epoch(self._epoch, step.epoch, step.skipped, self.uncounted)
        self._show()
        metrics = self._compute("train")
        self.log(metrics)
        metrics |= {f"train/{tag}" if tag == "loss" else tag: t / w for tag, (t, w) in self._epoch.items() if w}
        if self.validated:
            have = self._objective.trainer.callback_metrics
            pairs = ((tag[6:], value) for tag, value in metrics.items() if tag.startswith("train/"))
            gaps = {f"gap/{name}": float(have[f"val/{name}"]) - v for name, v in pairs if f"val/{name}" in have}
            self.log(gaps)
            metrics |= gaps
        self._give(metrics)
        self.remember(metrics)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def evaluate(self, stage: str, batch: object) -> None:
        """Evaluate one batch of validation or test and add it to the means and metrics."""
        objective = self._objective
        outcome = Outcome.of(objective.compute_loss(batch), {"val": "validation"}.get(stage, stage))
        check_terms(outcome.terms, self._metrics[stage])
        size = 0.0 if outcome.loss is None else float(objective.count(batch))
        if outcome.loss is None or not size:  # the mean of a batch in which nothing counts is 0 / 0
            self.uncounted.see(stage, outcome.loss)
        else:
            if outcome.loss.device.type == "cpu" and not self._told and not math.isfinite(outcome.loss.item()):
                self._told = True
                warnings.warn(explain_evaluation(objective, stage, batch, outcome.loss), stacklevel=2)
            for tag, value in {"loss": outcome.loss, **outcome.terms}.items():
                self._meters[stage].add(tag, value.detach(), size)
        if outcome.prediction is not None:
            for metric in self._metrics[stage].values():
                if metric.device != objective.device:  # to() visits every state
                    metric.to(objective.device)
                metric.update(outcome.prediction, outcome.target)

    def end_evaluation(self, stage: str) -> dict[str, float]:
        """Reduce J and metrics of a stage over ranks, publish them to callbacks and loggers, and return them by tag."""
        means = self._meters[stage].means(over_ranks=self._objective.trainer.world_size > 1)[0]
        self.uncounted.close(stage, counted="loss" in means)
        if words := terms_in_words(stage, means):
            warnings.warn(words, stacklevel=2)
        metrics = {f"{stage}/{tag}": mean for tag, mean in means.items()} | self._compute(stage)
        if self.publish(stage, metrics):
            self.log(metrics)
        return metrics

    def publish(self, stage: str, metrics: Mapping[str, float]) -> bool:
        """Give the metrics of an evaluation to callbacks and the history; return False in a sanity check."""
        trainer = self._objective.trainer
        if not trainer.sanity_checking:
            self.validated = True
            self._give(metrics)
            if stage == "val" and trainer.state.fn == "fit":
                self.remember(metrics)
        return not trainer.sanity_checking

    def _compute(self, stage: str) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, metric in self._metrics[stage].items():
            if metric.update_called:
                value = metric.compute()
                check_number(value, f"metric {name!r}", "make it average over classes")
                values[f"{stage}/{name}"] = float(value)
                metric.reset()
        return values

    @property
    def best(self) -> Entry | None:
        """First entry of the history with the best monitored metric; None if that was never finite."""
        return best_of(self.history, self.monitor, self._mode)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    @property
    def kept(self) -> list[Entry]:
        """The entries that a checkpoint holds: the best and the last, so its size does not grow during a run."""
        chosen = [self.best, *self.history[-1:]]
        return [entry for entry in self.history if any(entry is one for one in chosen)]

    def state(self) -> dict[str, Any]:
        """Return the means and metrics of this rank in the current epoch, as plain data and tensors on the CPU."""
        metrics = self._metrics["train"]
        return {
            "validated": self.validated,
            "epoch": dict(self._epoch),
            "means": self._meters["train"].state(),
            "held": [(prediction.cpu(), target.cpu()) for prediction, target in self._held],
            "metrics": {name: state_of_metric(metric) for name, metric in metrics.items()},
            "latest": dict(self.latest),
            "given": {name: float(value) for name, value in self._objective.trainer.callback_metrics.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned; called once training starts."""
        device = self._objective.device
        self.validated = state["validated"]
        self._epoch = {tag: (total, weight) for tag, (total, weight) in state["epoch"].items()}
        self._meters["train"].restore(state["means"], device)
        self._held = [(prediction.to(device), target.to(device)) for prediction, target in state["held"]]
        self._held_numbers = sum(prediction.numel() for prediction, _ in self._held)
        for name, metric in self._metrics["train"].items():
            if name in state["metrics"]:
                restore_metric(metric, state["metrics"][name])
        self.latest = dict(state["latest"])
        # callbacks and plateau schedules may monitor a validation from before the checkpoint
        given = {name: torch.tensor(value, dtype=torch.float64) for name, value in state["given"].items()}
        self._objective.trainer.callback_metrics.update(given)

    # ---- output ------------------------------------------------------------------------------------------------------

    def _give(self, metrics: Mapping[str, float]) -> None:
        """Write metrics to ``trainer.callback_metrics``, where callbacks monitor them."""
        device, known = self._objective.device, self._objective.trainer.callback_metrics
        known.update(zip(metrics, torch.tensor(list(metrics.values()), device=device).unbind(), strict=True))
        self.latest.update(metrics)

    def remember(self, metrics: Mapping[str, float]) -> None:
        """Add metrics to the history: to its last entry if no step was made since, else as a new entry."""
        step = self._objective.at.index
        if not self.history or self.history[-1].step != step:
            self.history.append(Entry(self._objective.at.epoch, step, {}))
        self.history[-1].metrics.update(metrics)

    def log(self, values: Mapping[str, float]) -> None:
        """Pass values to the loggers, with the number of optimizer steps done as the step."""
        self.latest.update(values)
        if values:
            for logger in self._objective.trainer.loggers:
                logger.log_metrics(dict(values), step=self._objective.at.index)
