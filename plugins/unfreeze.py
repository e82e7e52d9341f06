"""Unfreeze: thaw a pretrained network gradually, from the head down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pytorch_lightning as pl

from framework.errors import UserError
from framework.ops.depth import blocks_of
from framework.ops.freezing import set_trainable
from framework.ops.patterns import Patterns, select_parameters
from framework.plugin import Finding, Host, Plan, Plugin, Step
from framework.settings import PositiveInt


class Unfreeze(Plugin):
    r"""Train the head of a network first, and thaw the blocks below it one after the other.

    With blocks :math:`\theta_1, \dots, \theta_K` from the head down, after t epochs (or steps) those train with

    .. math:: k \le 1 + \lfloor t / \text{every} \rfloor

    or, with ``patience``, one more each time the monitored metric has not improved for so many validations. Two stages,
    ``stages=["head.*", "*"]``, are linear probing, then fine-tuning (LP-FT).

    All parameters are in the optimizer from the start, so that schedules and groups apply to them; without a gradient
    they do not move. What trains is a function of the step, or kept in checkpoints: a resumed run goes on alike. Under
    ddp the network is wrapped again when a stage is thawed, so that no frozen parameter is waited for. Frozen
    normalization layers keep their statistics, as under ``Freeze``.

    Args:
        stages: patterns over parameters or layers, the first stage trains from the start; parameters of no stage stay
            frozen. None for the network's blocks from the head down, see :func:`framework.ops.depth.blocks_of`.
        every: epochs or steps from one stage to the next.
        unit: ``"epochs"`` or ``"steps"``.
        patience: validations without improvement of the monitored metric after which the next stage is thawed, in
            place of ``every``.
        statistics: let frozen normalization layers normalize by their batches, and follow their statistics.

    Raises:
        UserError: if a pattern matches no parameter, or parameters are sharded.

    Example:
        >>> Unfreeze(["head.*", "*"], every=5).describe()
        "Unfreeze(stages=['head.*', '*'], every=5)"

    Interacts with: ``EarlyStopping``, whose patience should be longer than ``every``; ``LayerDecay``, for lower rates
    below; ``WeightAverage``, which takes up thawed weights.

    Source: Howard and Ruder (2018), Universal language model fine-tuning for text classification (gradual unfreezing);
    Kumar et al. (2022), Fine-tuning can distort pretrained features and underperform out-of-distribution (LP-FT).
    """

    stages: list[Patterns] | None = None
    every: PositiveInt = 1
    unit: Literal["epochs", "steps"] = "epochs"
    patience: PositiveInt | None = None
    statistics: bool = False

    examples = ({"stages": ["head", "*"], "every": 1}, {"every": 2, "unit": "steps"}, {"patience": 1})

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass, with the reason."""
        limits = {"sharded": "sharded parameters are gathered as they were frozen when they were sharded"}
        if not self.statistics:
            reason = "frozen normalization layers keep their statistics, in evaluation mode"
            limits |= dict.fromkeys(("norms", "modes"), reason)
        return limits

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Report stages that are never reached, and a metric that is never logged."""
        if self.patience is not None:
            if reason := plan.why_never_logged(plan.monitor, "val", "train", "gap"):
                yield Finding("error", self.name, f"patience={self.patience}: {plan.monitor}: {reason}")
            return
        last = (len(self.stages_) - 1) * self.every
        if self.unit == "epochs" and last >= plan.epochs and not math.isinf(plan.epochs):
            message = f"the last of {len(self.stages_)} stages begins after {last} epochs, the run has {plan.epochs:g}"
            yield Finding("warning", self.name, message)

    def attach(self, core: Host) -> None:
        """Find the parameters of each stage."""
        self.core_ = core
        named = dict(core.model.named_parameters())
        if self.stages is None:
            found = [[named[name] for name in block] for block in reversed(blocks_of(core.model))]
            self.stages_ = [stage for block in found if (stage := [p for p in block if p.requires_grad])]
        else:
            chosen = [
                select_parameters(core.model, one, who=f"Unfreeze(stages={self.stages!r})") for one in self.stages
            ]
            self.stages_ = [[p for p in one.values() if p.requires_grad] for one in chosen]
        self.all_ = [parameter for parameter in named.values() if parameter.requires_grad]
        self.never_ = [parameter for parameter in named.values() if not parameter.requires_grad]
        self.open_, self.best_, self.waited_ = 1, math.nan, 0

    def group_parameters(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Split the groups by stage: fused optimizers want a group's parameters to begin together."""
        stage = {id(parameter): place for place, stage in reversed([*enumerate(self.stages_)]) for parameter in stage}
        split: list[dict[str, Any]] = []
        for group in groups:
            parts: dict[int, dict[str, Any]] = {}
            for name, parameter in group["params"]:
                part = parts.setdefault(stage.get(id(parameter), -1), {**group, "params": []})
                part["params"].append((name, parameter))
            split.extend(parts.values())
        return split

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Freeze all but the stages that are thawed."""
        if hasattr(trainer.strategy, "device_mesh"):
            raise UserError(f"{self.name}: cannot thaw parameters that are sharded; use strategy='ddp'")
        self._apply(self.open_)

    def begin_step(self, step: Step) -> None:
        """Thaw the stages that are due."""
        if self.patience is None:
            done = step.epoch if self.unit == "epochs" else step.index
            due = min(1 + done // self.every, len(self.stages_))
            if due != self.open_:
                self._apply(due)
        if step.logged:
            step.record("unfrozen_stages", float(self.open_))

    def should_stop(self, metrics: Mapping[str, float]) -> bool:
        """Count the validations without improvement, and thaw the next stage; never stops."""
        value = metrics.get(self.core_.monitor)
        if self.patience is None or value is None:
            return False
        sign = 1.0 if self.core_.mode == "min" else -1.0
        if math.isnan(self.best_) or sign * value < sign * self.best_:
            self.best_, self.waited_ = value, 0
            return False
        self.waited_ += 1
        if self.waited_ >= self.patience and self.open_ < len(self.stages_):
            self.waited_ = 0
            self._apply(self.open_ + 1)
        return False

    def _apply(self, stages: int) -> None:
        """Let the first stages train, and no other parameter."""
        self.open_ = stages
        thawed = {parameter for stage in self.stages_[:stages] for parameter in stage}
        frozen = {parameter for parameter in self.all_ if parameter not in thawed} | set(self.never_)
        set_trainable(self.core_.model, frozen, statistics=self.statistics)

    def state_dict(self) -> dict[str, Any]:
        """Return how many stages train, and the count of validations."""
        return {"open": self.open_, "best": self.best_, "waited": self.waited_}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self.open_, self.best_ = min(state_dict["open"], len(self.stages_)), state_dict["best"]
        self.waited_ = state_dict["waited"]
