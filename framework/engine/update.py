"""One optimizer step: gradient, terms on weights, clipping, update, schedule."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from framework.data.loaders import Window
from framework.engine.forward import Forward
from framework.engine.gradient import Gradient, has_own, listeners, without_autocast
from framework.engine.modes import Modes
from framework.engine.objective import Objective
from framework.engine.skips import Skips
from framework.engine.stepper import Stepper
from framework.errors import UserError, some
from framework.ops.clip import clip_by_norm_, clip_by_value_, total_norm
from framework.ops.weights import Training
from framework.settings import Positive, problem_of


class Update:
    """Makes one optimizer step from one window.

    Manual optimization in Lightning leaves this to the module, in this order: gradient, unscale, terms on weights, the
    plugins' transforms, clip, update, schedule.

    Args:
        objective: the objective, whose weights are updated.
        gradient: computes the gradient of a window.
        forward: evaluates without side effects, for second gradients.
        skips: skips steps that are not finite; None to raise an error instead.
        clip: ``(gradient_clip_val, gradient_clip_algorithm)`` of the Trainer's options.

    Attributes:
        monitor: tag of the metric that a plateau schedule monitors.
        modes: the optimizer's modes for training and evaluation.
        needs_closure: whether the optimizer evaluates the objective itself; known once training starts.

    Raises:
        UserError: if clipping is misconfigured, or two plugins override ``second_gradient``.
    """

    def __init__(
        self,
        objective: Objective,
        gradient: Gradient,
        forward: Forward,
        skips: Skips | None,
        clip: tuple[float | None, str | None],
    ) -> None:
        self._objective, self._step, self._answers = objective, objective.at, objective.answers
        self._gradient, self._forward, self._skips, self.monitor = gradient, forward, skips, "val/loss"
        self._clip_value, self._clip_algorithm = clip[0], clip[1] or "norm"
        if self._clip_algorithm not in ("norm", "value"):
            raise UserError(f"gradient_clip_algorithm={clip[1]!r}: must be 'norm' or 'value'")
        if clip[0] is not None and (problem := problem_of(Positive, clip[0])):
            raise UserError(f"gradient_clip_val={clip[0]!r}: must be {problem}; leave it out to disable clipping")
        self._answers.only("second_gradient")
        self._total: Tensor | None = None  # of the current step
        self.modes = Modes()

    def prepare(self) -> Optimizer:
        """Read optimizer, scaler and schedulers from the Trainer and return the optimizer; called once training starts.

        Raises:
            UserError: if the optimizer needs a closure under a GradScaler, or steps of the run cannot be skipped.
        """
        trainer = self._objective.trainer
        if len(trainer.optimizers) != 1:
            raise UserError(
                f"configure_optimizers of {type(self._objective).__name__} returned {len(trainer.optimizers)}"
                " optimizers; a step here moves one: merge them into parameter groups of one"
            )
        self._optimizer: Optimizer = trainer.optimizers[0]
        self.modes = Modes(self._optimizer)
        self.modes.train()
        self._parameters: list[Tensor] = []
        self._training = Training(self._objective.model.parameters())
        self._follow()
        self._scaler: torch.amp.GradScaler | None = getattr(trainer.precision_plugin, "scaler", None)
        if self._scaler is not None and hasattr(self._optimizer, "_step_supports_amp_scaling"):
            # the fused kernel of SGD leaves its momentum uninitialized if the kernel itself skips the first step
            self._optimizer._step_supports_amp_scaling = False
        self._progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        self._schedules = trainer.lr_scheduler_configs
        closure = inspect.signature(self._optimizer.step).parameters.get("closure")
        self.needs_closure = closure is not None and closure.default is inspect.Parameter.empty
        if self.needs_closure and self._scaler is not None:
            raise UserError(
                f"{type(self._optimizer).__name__} evaluates the objective several times a step, which a GradScaler"
                " does not allow; use --trainer.precision 32-true or bf16-mixed"
            )
        if self._skips is not None:
            self._skips.prepare(self._optimizer, self.needs_closure)
        self._move = self._optimizer.step if self.needs_closure else Stepper(self._optimizer)
        self._zeroing = [one for one in listeners(self._objective) if has_own(one, "on_before_zero_grad")]
        self._watching = [one for one in listeners(self._objective) if has_own(one, "on_before_optimizer_step")]
        return self._optimizer

    def __call__(self, window: Window) -> None:
        """Update the weights by the gradient of one window."""
        with without_autocast(self._objective):
            self._progress.increment_ready()
            self.modes.train()
            self._follow()
            moved = self._make_step_by_closure(window) if self.needs_closure else self._make_step(window)
            self._progress.increment_completed()
            if moved:
                if self._answers.of("after_update"):
                    with torch.no_grad():
                        self._answers.notify("after_update", self._step)
                self._step_schedulers("step")

    def _follow(self) -> None:
        """Take up parameters that a callback added to the optimizer, and tell of those that it thawed only."""
        groups = self._optimizer.param_groups
        if sum([len(group["params"]) for group in groups]) != len(self._parameters):
            self._parameters = [p for group in groups for p in group["params"]]
        if not self._training.changed():
            return
        inside, named = set(self._parameters), self._objective.model.named_parameters()
        thawed = {name: p for name, p in named if p.requires_grad}
        if left := [name for name, p in thawed.items() if p not in inside]:
            warnings.warn(
                f"step {self._step.index}: {some(left)} may train now (requires_grad), but no parameter group of the"
                " optimizer has it, so it stays as it is; add it: optimizer.add_param_group, or Lightning's"
                " BaseFinetuning.unfreeze_and_add_param_group",
                stacklevel=2,
            )
        self._gradient.follow()

    def _make_step(self, window: Window) -> bool:
        scaler = self._scaler
        self.zero_gradients()
        if not self._complete_gradient(window):
            return False
        self._finish_gradients()
        if scaler is None:
            self._move()
            return True
        before = scaler.get_scale()
        scaler.step(self._optimizer)
        scaler.update()
        return scaler.get_scale() >= before

    def _complete_gradient(self, window: Window) -> bool:
        """Compute the whole gradient, including terms on weights; return False if the step must be skipped."""
        scaler, skips = self._scaler, self._skips
        if skips is not None:
            skips.begin()
        self._total = self._gradient(window)
        found = self._total is not None
        if skips is not None and skips.leave_out():
            return False
        if found and (second := self._answers.first("second_gradient")) is not None:
            self._replace_gradient(second, window)
            if skips is not None and skips.leave_out():
                return False
        if found and scaler is not None:
            scaler.unscale_(self._optimizer)
        if found:
            self._add_weight_gradients()
        if skips is not None:
            # a scaler checks the gradients itself and lowers its scale
            if found and scaler is None and skips.leave_out(self._parameters):
                return False
            skips.keep()
        return found

    def _make_step_by_closure(self, window: Window) -> bool:
        step = self._step

        def closure() -> Tensor:
            self.zero_gradients()
            total = self._gradient(window)
            if total is None:
                raise UserError(
                    f"step {step.index}: {type(self._optimizer).__name__} cannot skip a batch; return a loss, not None"
                )
            if step.world > 1:
                total = total.clone()
                torch.distributed.all_reduce(total)
                total = total / step.world
            if (second := self._answers.first("second_gradient")) is not None:
                self._replace_gradient(second, window)
            self._add_weight_gradients()
            self._finish_gradients()
            return total + sum(self.weight_terms().values())

        self._optimizer.step(closure)  # type: ignore[arg-type]
        return True

    def _replace_gradient(self, answer: Callable[..., None], window: Window) -> None:
        """Call the plugin that replaces the gradient by one evaluated at edited weights."""
        if self._scaler is not None:
            # the scaler unscales only once per step, which the second gradient needs: the first is unscaled here
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            torch._foreach_mul_(gradients, 1.0 / self._scaler.get_scale())
            if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
                return  # the scaler will skip this step
        answer(self._step, lambda edit: self._gradient_at(window, edit))

    def _gradient_at(self, window: Window, edit: Callable[[], None]) -> None:
        """Replace the weights' gradient by the one at edited weights, over all micro-batches of the window.

        Args:
            window: the step's window.
            edit: edits weights in place, saved first by ``step.edits.save``; undone at the end, also after an error.
        """
        with self._objective.edits.nested():
            with torch.no_grad():
                edit()
            self.zero_gradients()
            with self._forward.untraced():
                self._gradient(window)

    def zero_gradients(self) -> None:
        """Set the weights' gradients to None."""
        for one in self._zeroing:
            _notify(one, "on_before_zero_grad", self._objective, self._optimizer)
        for parameter in self._parameters:
            parameter.grad = None

    def _add_weight_gradients(self) -> None:
        if self._answers.first("weight_penalty_gradient") is not None:
            with torch.no_grad():
                self._answers.notify("weight_penalty_gradient", self._step)

    def _finish_gradients(self) -> None:
        """Apply the plugins' transforms to the complete gradients, then clip them."""
        if self._answers.of("transform_gradients"):
            with torch.no_grad():
                self._answers.notify("transform_gradients", self._step)
        for one in self._watching:
            _notify(one, "on_before_optimizer_step", self._objective, self._optimizer)
        self._clip()

    def _clip(self) -> None:
        step = self._step
        trainers = None if self._clip_value is None else "the Trainer's gradient_clip_val"
        clipped = self._answers.sole("clip_gradients", step, rival=trainers)
        if self._clip_value is not None:
            if self._clip_algorithm == "value":
                clip_by_value_(self._parameters, self._clip_value)
            else:
                gradients = [p.grad for p in self._parameters if p.grad is not None]
                step.record("grad_norm", clip_by_norm_(gradients, self._clip_value))
        elif not clipped and step.logged:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            step.record("grad_norm", total_norm(gradients))

    @torch.no_grad()
    def weight_terms(self) -> dict[str, Tensor]:
        """Return the current values of the terms on weights by tag."""
        return self._answers.sum("weight_penalty", self._step)

    def learning_rates(self) -> dict[str, float]:
        """Return the learning rate of each parameter group by tag; the only tag is ``lr`` if all are equal."""
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        if len(set(rates)) == 1:
            return {"lr": rates[0]}
        return {f"lr/{index}": rate for index, rate in enumerate(rates)}

    def _step_schedulers(self, interval: str) -> None:
        for config in self._schedules:
            if config.interval == interval and not isinstance(config.scheduler, ReduceLROnPlateau):
                done = self._step.index if interval == "step" else self._step.epoch
                if (done + 1) % config.frequency == 0:
                    config.scheduler.step()

    def end_epoch(self, validated: bool) -> None:
        """Step schedulers that count epochs, and plateau schedulers if the epoch was validated."""
        self._step_schedulers("epoch")
        for config in self._schedules:
            if isinstance(config.scheduler, ReduceLROnPlateau) and validated:
                metrics = self._objective.trainer.callback_metrics
                if self.monitor not in metrics:
                    raise UserError(
                        f"monitor={self.monitor!r} of the plateau schedule is never logged; use one of:"
                        f" {', '.join(sorted(metrics))}"
                    )
                config.scheduler.step(float(metrics[self.monitor]))


def _notify(one: Any, hook: str, module: pl.LightningModule, optimizer: Optimizer) -> None:
    if one is module:
        getattr(one, hook)(optimizer)
    else:
        getattr(one, hook)(module.trainer, module, optimizer)
