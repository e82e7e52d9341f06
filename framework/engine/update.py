"""One optimizer step: gradient, terms on weights, clipping, update, schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from framework.data.loaders import Window
from framework.engine.gradient import has_own, listeners, named_terms, without_autocast
from framework.engine.stepper import Stepper
from framework.errors import UserError
from framework.ops.clip import clip_by_norm_
from framework.ops.shards import whole
from framework.settings import Positive, problem_of

if TYPE_CHECKING:
    from framework.engine.core import Core


class Update:
    """Makes one optimizer step of one window.

    Lightning's manual optimization leaves unscaling, clipping and schedulers to us; they are done here, in this order:
    gradient, unscale, terms on weights, the plugins' transforms, clip, update, schedule.

    Args:
        core: whose weights are moved.
        clip: ``(gradient_clip_val, gradient_clip_algorithm)`` of the Trainer's options.

    Attributes:
        skipped: steps left out so far since they were not finite, see :mod:`framework.engine.skips`.
    """

    def __init__(self, core: Core, clip: tuple[float | None, str | None]) -> None:
        self._core = core
        self.monitor = "val/loss"
        self.skipped = 0
        self._clip_value, self._clip_algorithm = clip[0], clip[1] or "norm"
        if self._clip_algorithm not in ("norm", "value"):
            raise UserError(f"gradient_clip_algorithm={clip[1]!r}: must be 'norm' or 'value'")
        if clip[0] is not None and (problem := problem_of(Positive, clip[0])):
            raise UserError(f"gradient_clip_val={clip[0]!r}: must be {problem}; leave it out to clip nothing")
        answers = core.answers
        self._weight_penalties = answers.of("weight_penalty")
        self._weight_gradients = answers.calls("weight_penalty_gradient")
        self._transforms = answers.calls("transform_gradients")
        self._clippers = answers.of("clip_gradients")
        self._after = answers.calls("after_update")
        second = answers.of("second_gradient")
        if len(second) > 1:
            names = " and ".join(repr(plugin.name) for plugin in second)
            raise UserError(
                f"second_gradient: {names} each replace the step's gradient, and only one may; take one out"
            )
        self._second = second[0].second_gradient if second else None

    def prepare(self) -> Optimizer:
        """Take the run's optimizer, scaler and schedulers; once training starts."""
        trainer = self._core.trainer
        self._optimizer: Optimizer = trainer.optimizers[0]
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._scaler: torch.amp.GradScaler | None = getattr(trainer.precision_plugin, "scaler", None)
        if self._scaler is not None and hasattr(self._optimizer, "_step_supports_amp_scaling"):
            # asked to skip its first step itself, the fused kernel of SGD leaves its momentum uninitialized
            self._optimizer._step_supports_amp_scaling = False
        self._progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        self._schedules = trainer.lr_scheduler_configs
        closure = inspect.signature(self._optimizer.step).parameters.get("closure")
        self._needs_closure = closure is not None and closure.default is inspect.Parameter.empty
        if self._needs_closure and self._scaler is not None:
            raise UserError(
                f"{type(self._optimizer).__name__} evaluates the objective several times a step, which a GradScaler"
                " does not allow; use --trainer.precision 32-true or bf16-mixed"
            )
        if self._core.skips is not None:
            self._core.skips.prepare(self._optimizer, self._needs_closure)
        self._move = self._optimizer.step if self._needs_closure else Stepper(self._optimizer)
        self._zeroing = [one for one in listeners(self._core) if has_own(one, "on_before_zero_grad")]
        self._watching = [one for one in listeners(self._core) if has_own(one, "on_before_optimizer_step")]
        return self._optimizer

    def __call__(self, window: Window) -> None:
        """Move the weights by one window."""
        core = self._core
        with without_autocast(core):
            self._progress.increment_ready()
            if self._needs_closure:
                moved = self._step_by_closure(window)
            else:
                moved = self._step(window)
            self._progress.increment_completed()
            if moved:
                if self._after:
                    with torch.no_grad():
                        for after in self._after:
                            after(core.at)
                self._step_schedulers("step")

    def _step(self, window: Window) -> bool:
        scaler = self._scaler
        self.zero_gradients()
        if not self._gradient(window):
            return False
        self._finish_gradients()
        if scaler is None:
            self._move()
            return True
        before = scaler.get_scale()
        scaler.step(self._optimizer)
        scaler.update()
        return scaler.get_scale() >= before

    def _gradient(self, window: Window) -> bool:
        """Work out the whole gradient, terms on weights included; False where the step is to be left out."""
        scaler, skips = self._scaler, self._core.skips
        if skips is not None:
            skips.begin()
        found = self._core.gradient(window) is not None
        if skips is not None and skips.leave_out():
            return False
        if found and self._second is not None:
            self._second_gradient(self._second, window)
            if skips is not None and skips.leave_out():
                return False
        if found and scaler is not None:
            scaler.unscale_(self._optimizer)
        if found:
            self._add_weight_gradients()
        if skips is not None:
            # a scaler looks at gradients itself, and lowers its scale
            if found and scaler is None and skips.leave_out(self._parameters):
                return False
            skips.keep()
        return found

    def _step_by_closure(self, window: Window) -> bool:
        core = self._core

        def closure() -> Tensor:
            self.zero_gradients()
            objective = core.gradient(window)
            if objective is None:
                raise UserError(f"step {core.at.index}: {type(self._optimizer).__name__} cannot leave a batch out")
            if core.at.world > 1:
                objective = objective.clone()
                torch.distributed.all_reduce(objective)
                objective = objective / core.at.world
            if self._second is not None:
                self._second_gradient(self._second, window)
            self._add_weight_gradients()
            self._finish_gradients()
            return objective + sum(self.weight_terms().values())

        self._optimizer.step(closure)  # type: ignore[arg-type]
        return True

    def _second_gradient(self, answer: Callable[..., None], window: Window) -> None:
        """Let a plugin replace the gradient by one evaluated at edited weights."""
        core = self._core
        if self._scaler is not None:
            # the scaler unscales once a step, and that is for the second gradient: this one is unscaled here
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            torch._foreach_mul_(gradients, 1.0 / self._scaler.get_scale())
            if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
                return  # the scaler will skip this step
        answer(core.at, lambda edit: core.again.gradient(window, edit))

    def zero_gradients(self) -> None:
        """Forget the weights' gradients."""
        for one in self._zeroing:
            _notify(one, "on_before_zero_grad", self._core, self._optimizer)
        for parameter in self._parameters:
            parameter.grad = None

    def _add_weight_gradients(self) -> None:
        if self._weight_gradients:
            with torch.no_grad():
                for add in self._weight_gradients:
                    add(self._core.at)

    def _finish_gradients(self) -> None:
        """Let plugins change the gradients, and clip them."""
        if self._transforms:
            with torch.no_grad():
                for transform in self._transforms:
                    transform(self._core.at)
        for one in self._watching:
            _notify(one, "on_before_optimizer_step", self._core, self._optimizer)
        self._clip()

    def _clip(self) -> None:
        clipped = [plugin.name for plugin in self._clippers if plugin.clip_gradients(self._core.at)]
        if self._clip_value is not None:
            clipped.append("the Trainer's gradient_clip_val")
            if self._clip_algorithm == "value":
                torch.nn.utils.clip_grad_value_(self._parameters, self._clip_value)
            else:
                gradients = [p.grad for p in self._parameters if p.grad is not None]
                self._core.at.record("grad_norm", whole(clip_by_norm_(gradients, self._clip_value)))
        if len(clipped) > 1:
            raise UserError(f"gradients are clipped by {' and by '.join(clipped)}, and only one may; take one out")
        if not clipped and self._core.at.logged:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            self._core.at.record("grad_norm", whole(torch.nn.utils.get_total_norm(gradients)))

    @torch.no_grad()
    def weight_terms(self) -> dict[str, Tensor]:
        """Return the values of the terms on weights by tag, as they stand."""
        terms: dict[str, Tensor] = {}
        for plugin in self._weight_penalties:
            terms.update(named_terms(plugin.name, plugin.weight_penalty(self._core.at)))
        return terms

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rate of each parameter group by tag; groups of one rate share the tag ``lr``."""
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        if len(set(rates)) == 1:
            return {"lr": rates[0]}
        return {f"lr/{index}": rate for index, rate in enumerate(rates)}

    def _step_schedulers(self, interval: str) -> None:
        for config in self._schedules:
            if config.interval == interval and not isinstance(config.scheduler, ReduceLROnPlateau):
                done = self._core.at.index if interval == "step" else self._core.at.epoch
                if (done + 1) % config.frequency == 0:
                    config.scheduler.step()

    def end_epoch(self, validated: bool) -> None:
        """Move schedulers that count epochs, and those that wait for a plateau where there was a validation."""
        self._step_schedulers("epoch")
        for config in self._schedules:
            if isinstance(config.scheduler, ReduceLROnPlateau) and validated:
                metrics = self._core.trainer.callback_metrics
                if self.monitor not in metrics:
                    raise UserError(
                        f"monitor={self.monitor!r} of the plateau schedule is never logged{_known(metrics)}"
                    )
                config.scheduler.step(float(metrics[self.monitor]))


def _known(metrics: Any) -> str:
    return f"; logged are: {', '.join(sorted(metrics))}"


def _notify(one: Any, hook: str, core: Core, optimizer: Optimizer) -> None:
    if one is core:
        getattr(one, hook)(optimizer)
    else:
        getattr(one, hook)(core.trainer, core, optimizer)
