"""The optimizer's step without the overhead of torch's wrapper."""

from __future__ import annotations

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as hooks


class Stepper:
    """Calls an optimizer's ``step``, bypassing torch's wrapper if that makes no difference.

    The wrapper labels the step for a profiler and calls hooks, which takes 25 microseconds per step. It is used if a
    profiler or hooks are active, and for the first step, which schedules check for.

    Args:
        optimizer: the optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        own = type(optimizer).step
        self._put_in = vars(optimizer).get("step")  # a schedule replaces it by one that records the first step
        plain = self._put_in is None or hasattr(self._put_in, "_wrapped_by_lr_sched")
        wrapped = plain and getattr(own, "hooked", False)
        self._bare = own.__wrapped__ if wrapped else None  # type: ignore[attr-defined]
        self._first = True

    def __call__(self) -> None:
        """Make one step of the optimizer."""
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
