"""One optimizer step of a LightningModule: by its own optimizer, schedulers and hooks."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.core.optimizer import _configure_optimizers, _configure_schedulers_automatic_opt
from pytorch_lightning.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer

from framework.data.modules import overridden
from framework.engine.update import Update
from framework.errors import UserError


class Configured:
    """What a module's ``configure_optimizers`` returned, in any of Lightning's forms.

    Args:
        answer: the value it returned.
        name: the module's class, which errors name.

    Attributes:
        optimizer: the optimizer.
        schedules: its schedulers, with interval, frequency, monitor and strictness.

    Raises:
        UserError: if it is not one optimizer.
    """

    def __init__(self, answer: Any, name: str) -> None:
        if answer is None:
            raise UserError(
                f"{name}.configure_optimizers returned None; return an optimizer, or give a plugin that has one"
            )
        optimizers, schedulers, monitor = _configure_optimizers(answer)
        if len(optimizers) != 1:
            raise UserError(
                f"{name}.configure_optimizers returned {len(optimizers)} optimizers; a step here moves one: merge them"
                " into parameter groups of one"
            )
        optimizer = optimizers[0]
        self.optimizer: Optimizer = getattr(optimizer, "optimizer", optimizer)  # unwrapped if it is Lightning's own
        self.schedules: list[LRSchedulerConfig] = _configure_schedulers_automatic_opt(schedulers, monitor)

    def for_lightning(self) -> Any:
        """Return optimizer and schedulers in the form in which Lightning keeps them in checkpoints and steps none."""
        kept = [
            {"scheduler": one.scheduler, "interval": one.interval, "frequency": one.frequency, "name": one.name}
            for one in self.schedules
        ]
        return [self.optimizer], kept


class ForeignUpdate(Update):
    """Makes one optimizer step by the module's own hooks, where it overrides them.

    ``optimizer_step``, ``optimizer_zero_grad``, ``configure_gradient_clipping`` and ``lr_scheduler_step`` are called as
    under Lightning's automatic optimization, with a closure that returns the loss already computed.

    Attributes:
        configured: what the module configured, None if plugins have optimizer and schedule.
    """

    configured: Configured | None = None

    def prepare(self) -> Optimizer:
        """Read optimizer, scaler and schedulers from the Trainer, and find the module's own hooks."""
        optimizer = super().prepare()
        module = self._module = self._objective.model
        self._own = {
            hook: getattr(module, hook)
            for hook in ("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step")
            if overridden(module, hook)
        }
        name = type(module).__name__
        if "optimizer_step" in self._own:
            if self._scaler is not None:
                raise UserError(
                    f"{name}.optimizer_step cannot be used with a GradScaler; use --trainer.precision bf16-mixed"
                )
            if not self.needs_closure:
                self._move = self._own_step  # type: ignore[assignment]
        if self.configured is not None:
            self._schedules = self.configured.schedules
        return optimizer

    def _own_step(self) -> None:
        trainer = self._objective.trainer
        total = self._total

        def closure() -> Any:
            return total

        objective: Any = self._objective
        self._own["optimizer_step"](trainer.current_epoch, objective.steps.index, self._optimizer, closure)

    def zero_gradients(self) -> None:
        """Set the weights' gradients to None, by the module's own hook if it has one."""
        super().zero_gradients()
        if "optimizer_zero_grad" in self._own:
            objective: Any = self._objective
            self._own["optimizer_zero_grad"](objective.trainer.current_epoch, objective.steps.index, self._optimizer)

    def _clip(self) -> None:
        if "configure_gradient_clipping" in self._own:
            if self._answers.sole("clip_gradients", self._step):
                who = " and ".join(plugin.name for plugin in self._answers.of("clip_gradients"))
                raise UserError(
                    f"{type(self._module).__name__}.configure_gradient_clipping and {who} both clip; leave one out"
                )
            algorithm = self._clip_algorithm if self._clip_value is not None else None
            self._own["configure_gradient_clipping"](
                self._optimizer, gradient_clip_val=self._clip_value, gradient_clip_algorithm=algorithm
            )
        else:
            super()._clip()

    # ---- schedules, by Lightning's rules ----------------------------------------------------------------------------

    def _step_schedulers(self, interval: str) -> None:
        if self.configured is None:
            super()._step_schedulers(interval)
        else:
            self._step_own(interval, plateau=False)

    def step_plateaus(self) -> None:
        """Step the schedulers that monitor a metric after each step."""
        if self.configured is not None:
            self._step_own("step", plateau=True)

    def end_epoch(self, validated: bool) -> None:
        """Step schedulers that count epochs."""
        if self.configured is None:
            super().end_epoch(validated)
        else:
            self._step_own("epoch", plateau=False)
            self._step_own("epoch", plateau=True)

    def _step_own(self, interval: str, *, plateau: bool) -> None:
        objective: Any = self._objective
        done = objective.steps.index if interval == "step" else objective.trainer.current_epoch
        for config in self._schedules:
            due = config.interval == interval and (done + 1) % config.frequency == 0
            if not due or config.reduce_on_plateau is not plateau:
                continue
            value = self._monitored(config) if plateau else None
            if plateau and value is None:
                continue
            if "lr_scheduler_step" in self._own:
                self._own["lr_scheduler_step"](config.scheduler, value)
            elif value is None:
                config.scheduler.step()  # type: ignore[call-arg]
            else:
                config.scheduler.step(value)  # type: ignore[arg-type] # of a plateau schedule

    def _monitored(self, config: LRSchedulerConfig) -> torch.Tensor | None:
        metrics = self._objective.trainer.callback_metrics
        if config.monitor in metrics:
            return metrics[config.monitor]
        if config.strict:
            raise UserError(
                f"configure_optimizers: monitor={config.monitor!r} of the plateau schedule is not logged; logged are:"
                f" {', '.join(sorted(metrics))}"
            )
        return None
