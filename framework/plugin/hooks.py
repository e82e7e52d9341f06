"""The hook points: their names, the order in which a step meets them, and how the answers combine."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pytorch_lightning import Callback

Rule = Literal["fold", "sum", "nest", "sole", "any", "notify", "collect"]

RULES: dict[Rule, str] = {
    "fold": "each gets what the one before it returned",
    "sum": "named terms are added up",
    "nest": "all apply inside one another and are undone in reverse, on every way out",
    "sole": "one may answer; two answers are an error; none gives the default",
    "any": "one yes is enough",
    "notify": "all are told, in order",
    "collect": "all that is told is shown together",
}


@dataclasses.dataclass(frozen=True)
class HookPoint:
    """One place where plugins may answer.

    Args:
        name: the method's name.
        rule: how the answers combine, a key of :data:`RULES`.
        when: when it is asked.
    """

    name: str
    rule: Rule
    when: str


HOOK_POINTS: tuple[HookPoint, ...] = (
    HookPoint("prepare_model", "fold", "once, before the optimizer exists and before compile"),
    HookPoint("attach", "notify", "once, when the model is ready: patterns are resolved here"),
    HookPoint("lint", "collect", "once, before training: what is wrong or odd about the recipe"),
    HookPoint("group_parameters", "fold", "before the optimizer is made, and for lint"),
    HookPoint("make_optimizer", "sole", "once"),
    HookPoint("make_scheduler", "sole", "once, after the optimizer"),
    HookPoint("transform_sample", "fold", "each training sample, in the loader's workers"),
    HookPoint("begin_step", "notify", "at the start of each optimizer step"),
    HookPoint("transform_batch", "fold", "each training micro-batch, on the device"),
    HookPoint("edit_weights", "nest", "around forward and backward of a training micro-batch"),
    HookPoint("transform_activation", "fold", "each training forward, at the layers that the plugin selects"),
    HookPoint("penalty", "sum", "each training micro-batch: differentiable terms"),
    HookPoint("second_gradient", "sole", "each optimizer step, when its gradient is complete: evaluate it once more"),
    HookPoint("weight_penalty", "sum", "on logged steps: values of terms on weights with a gradient in closed form"),
    HookPoint("weight_penalty_gradient", "sum", "each optimizer step, after unscaling and reduction over ranks"),
    HookPoint("transform_gradients", "fold", "each optimizer step, before clipping"),
    HookPoint("clip_gradients", "sole", "each optimizer step, last before the update"),
    HookPoint("after_update", "notify", "after the optimizer moved the weights, not where the step was skipped"),
    HookPoint("evaluation_weights", "sole", "around validate, test, predict and export"),
    HookPoint("should_stop", "any", "after validation, metrics already reduced over ranks"),
    HookPoint("finish", "notify", "after training, whichever way it ended, when its last checkpoint is written"),
    HookPoint("next_phase", "sole", "after training ended: one more phase of training"),
)

# the methods by which Lightning notifies a callback
NOTICES = tuple(name for name in vars(Callback) if name.startswith(("on_", "setup", "teardown")))

HOOKS: dict[str, HookPoint] = {point.name: point for point in HOOK_POINTS}
