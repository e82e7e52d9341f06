"""Skipping of optimizer steps whose objective or gradient is not finite."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.engine.objective import Objective
from framework.engine.recorder import Recorder
from framework.errors import NonFiniteError, UserError
from framework.ops.finite import finite_weights, first_not_finite
from framework.ops.shards import is_sharded

OnNonFinite = Literal["stop", "skip"]


class Skips:
    """Skips a whole step on all ranks if its objective or gradient is not finite on any, and counts it.

    A skipped step has no effect on weights, the optimizer's state, averages, schedules, running statistics, means and
    metrics. To check, every step synchronizes with the device once.

    Args:
        objective: the objective; ``objective.at.skipped`` counts the skipped steps.
        recorder: keeps the values of a step apart until the step is known to be finite.
    """

    def __init__(self, objective: Objective, recorder: Recorder) -> None:
        self._objective = objective
        self._recorder = recorder
        self._why: str | None = None
        self._put_buffers_back: Callable[[], None] = _nothing

    def prepare(self, optimizer: Optimizer, needs_closure: bool) -> None:
        """Check that steps of this run can be skipped; called once training starts.

        Args:
            optimizer: the run's optimizer.
            needs_closure: whether it evaluates the objective itself.

        Raises:
            UserError: if the optimizer changes weights while it evaluates the objective, or parameters are sharded.
        """
        if needs_closure:
            raise UserError(
                f"on_nonfinite='skip': {type(optimizer).__name__} changes the weights while it evaluates the objective;"
                " use 'stop'"
            )
        if any(is_sharded(parameter) for parameter in self._objective.model.parameters()):
            raise UserError(
                "on_nonfinite='skip': parameters are sharded across ranks, and each rank has only a slice of the"
                " gradient; use 'stop', or strategy='ddp'"
            )

    def begin(self) -> None:
        """Start a step: save buffers, and keep recorded values apart."""
        self._why = None
        self._put_buffers_back = self._objective.keep_state()
        self._recorder.hold()

    @property
    def spoiled(self) -> bool:
        """Whether this rank found a number in the step that is not finite."""
        return self._why is not None

    def spoil(self, why: Callable[[], str]) -> None:
        """Mark the step to be skipped.

        Args:
            why: returns the reason in one line; called only for the first skipped step, since it runs a forward pass.
        """
        if self._why is None:
            self._why = "" if self._objective.at.skipped else why()

    def leave_out(self, parameters: Sequence[Tensor] = ()) -> bool:
        """Return whether the step must be skipped, and if so undo its effects. A collective: every rank must call it.

        Args:
            parameters: parameters whose gradients to check, if these are complete.

        Raises:
            NonFiniteError: if a weight is not finite, so no later step can be finite either.
        """
        objective = self._objective
        self._look_at(parameters)
        bad = self.spoiled
        if objective.at.world > 1:
            shared = torch.tensor(float(bad), device=objective.device)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
            bad = bool(shared)
        if not bad:
            return False
        self._put_buffers_back()
        self._recorder.release(keep=False)
        objective.at.records = {}
        name = finite_weights(objective.model)
        if name is not None:
            raise NonFiniteError(
                f"step {objective.at.index}: {name!r} is not finite since an earlier update, and skipping steps does"
                " not repair it; resume from the last checkpoint, with a lower learning rate"
            )
        objective.at.skipped += 1
        if self._why:
            warnings.warn(f"{self._why}; this step is skipped; further ones are skipped without warning", stacklevel=2)
        return True

    def _look_at(self, parameters: Sequence[Tensor]) -> None:
        gradients = {str(place): p.grad for place, p in enumerate(parameters) if p.grad is not None}
        place = first_not_finite(gradients)
        if place is not None:
            names = {p: name for name, p in self._objective.model.named_parameters()}
            problem = f"the gradient of {names[parameters[int(place)]]!r} is not finite, though the loss is"
            self.spoil(lambda: f"step {self._objective.at.index}: {problem}")

    def keep(self) -> None:
        """Record the values of a step that is not skipped."""
        self._recorder.release(keep=True)


def _nothing() -> None:
    """Do nothing: there are no buffers to restore before the first step."""
