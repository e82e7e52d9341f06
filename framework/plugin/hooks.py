"""The hook points in the order in which a run calls them, and the rules by which their results combine."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pytorch_lightning import Callback

Rule = Literal["fold", "sum", "nest", "sole", "any", "notify", "collect"]

RULES: dict[Rule, str] = {
    "fold": "each plugin receives what the one before it returned",
    "sum": "the named terms of all plugins are added up",
    "nest": "all edits apply one after another and are undone in reverse, also after an error",
    "sole": "at most one plugin may answer; two answers are an error; none gives the default",
    "any": "one True is enough; all plugins are called",
    "notify": "all plugins are called, in order",
    "collect": "the results of all plugins are listed together",
}


@dataclasses.dataclass(frozen=True)
class HookPoint:
    """A method that plugins may override, and that the core calls at a defined moment of a run.

    Args:
        name: the method's name.
        rule: how the results of several plugins combine, a key of :data:`RULES`.
        when: when it is called.
    """

    name: str
    rule: Rule
    when: str


HOOK_POINTS: tuple[HookPoint, ...] = (
    HookPoint("prepare_model", "fold", "once, before the optimizer is made and the network compiled"),
    HookPoint("attach", "notify", "once the network is ready, and again if it is sharded later: resolves patterns"),
    HookPoint("lint", "collect", "once, before training: errors and warnings about the recipe"),
    HookPoint("group_parameters", "fold", "before the optimizer is made, and for lint"),
    HookPoint("make_optimizer", "sole", "once, before training"),
    HookPoint("make_scheduler", "sole", "once, after the optimizer is made"),
    HookPoint("transform_sample", "fold", "for each training sample, in the loader's workers"),
    HookPoint("begin_step", "notify", "at the start of each optimizer step"),
    HookPoint("transform_batch", "fold", "for each training micro-batch, on the device"),
    HookPoint("edit_weights", "nest", "around forward and backward of a training micro-batch"),
    HookPoint("transform_activation", "fold", "in each training forward, at the layers that the plugin selects"),
    HookPoint("penalty", "sum", "after the forward of each training micro-batch: differentiable terms"),
    HookPoint("second_gradient", "sole", "in each optimizer step: evaluates its gradient again at edited weights"),
    HookPoint("weight_penalty", "sum", "on logged steps: values of terms on weights with a gradient in closed form"),
    HookPoint("weight_penalty_gradient", "sum", "in each optimizer step, after unscaling and reduction over ranks"),
    HookPoint("transform_gradients", "fold", "in each optimizer step, before clipping"),
    HookPoint("clip_gradients", "sole", "in each optimizer step, last before the update"),
    HookPoint("after_update", "notify", "after the optimizer updated the weights, unless the step was skipped"),
    HookPoint("evaluation_weights", "sole", "around validation, test, predict and export"),
    HookPoint("export_model", "fold", "before export: the network as it is used afterwards"),
    HookPoint("should_stop", "any", "after each validation, on metrics reduced over ranks"),
    HookPoint("finish", "notify", "after training and its last checkpoint, also after an error or Ctrl-C"),
    HookPoint("next_phase", "sole", "after training ended normally: one more phase of training"),
)

# the hooks that Lightning calls on a callback
NOTICES = tuple(name for name in vars(Callback) if name.startswith(("on_", "setup", "teardown")))

HOOKS: dict[str, HookPoint] = {point.name: point for point in HOOK_POINTS}
