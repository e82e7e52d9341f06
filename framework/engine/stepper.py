"""The optimizer's own step, below what torch wraps around it."""

from __future__ import annotations

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as hooks


class Stepper:
    """Makes an optimizer's steps, without torch's wrapper where nobody would notice.

    The wrapper names the step for a profiler and asks for hooks, at 25 microseconds a step. Where a profiler runs, or
    there is a hook, and for the first step, which a schedule wants to see, the step is taken through it.

    Args:
        optimizer: whose steps.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        own = type(optimizer).step
        self._put_in = vars(optimizer).get("step")  # a schedule puts one in, which notes the first step
        plain = self._put_in is None or hasattr(self._put_in, "_wrapped_by_lr_sched")
        wrapped = plain and getattr(own, "hooked", False)
        self._bare = own.__wrapped__ if wrapped else None  # type: ignore[attr-defined]
        self._first = True

    def __call__(self) -> None:
        """Make one step."""
        one = self._optimizer
        if (
            self._bare is None
            or self._first
            or vars(one).get("step") is not self._put_in
            or one._optimizer_step_pre_hooks
            or one._optimizer_step_post_hooks
            or hooks._global_optimizer_pre_hooks
            or hooks._global_optimizer_post_hooks
            or torch.autograd.profiler._is_profiler_enabled
        ):
            self._first = False
            one.step()
        else:
            self._bare(one)
