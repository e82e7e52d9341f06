"""Optimizer steps that are left out because a number in them is not finite."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.errors import NonFiniteError, UserError
from framework.ops.buffers import keep_buffers
from framework.ops.finite import finite_weights, first_not_finite
from framework.ops.shards import is_sharded

if TYPE_CHECKING:
    from framework.engine.core import Core

OnNonFinite = Literal["stop", "skip"]


class Skips:
    """Leaves a whole step out where its objective or its gradient is not finite, on all ranks alike, and counts it.

    Of such a step nothing stays: weights, the optimizer's state, averages, schedules, running statistics, means and
    metrics are as if it had not been. Each step then waits for the device once, to know.

    Args:
        core: whose steps they are; ``core.update.skipped`` counts them.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._why: str | None = None
        self._put_buffers_back: Callable[[], None] = _nothing

    def prepare(self, optimizer: Optimizer, needs_closure: bool) -> None:
        """Refuse what steps cannot be left out of; once training starts.

        Args:
            optimizer: the run's optimizer.
            needs_closure: whether it evaluates the objective itself.

        Raises:
            UserError: under an optimizer that moves weights before the step is known to be good, or sharded parameters.
        """
        if needs_closure:
            raise UserError(
                f"on_nonfinite='skip': {type(optimizer).__name__} moves the weights while it evaluates the objective;"
                " use 'stop'"
            )
        if any(is_sharded(parameter) for parameter in self._core.model.parameters()):
            raise UserError(
                "on_nonfinite='skip': where ranks share the parameters out, each sees a part of the gradient only; use"
                " 'stop', or strategy='ddp'"
            )

    def begin(self) -> None:
        """Begin a step."""
        self._why = None
        self._put_buffers_back = keep_buffers(self._core.model)
        self._core.recorder.hold()

    @property
    def spoiled(self) -> bool:
        """Whether this rank found the step not finite."""
        return self._why is not None

    def spoil(self, why: Callable[[], str]) -> None:
        """Note that the step is to be left out.

        Args:
            why: tells the reason in one line; asked for the first step left out alone, since it takes a forward.
        """
        if self._why is None:
            self._why = "" if self._core.update.skipped else why()

    def leave_out(self, parameters: Sequence[Tensor] = ()) -> bool:
        """Tell whether any rank found the step not finite; all ranks have to ask. Its traces are gone then.

        Args:
            parameters: whose gradients are looked at, once they are complete.

        Raises:
            NonFiniteError: where the weights themselves are not finite, so that no later step can be.
        """
        core = self._core
        self._look_at(parameters)
        bad = self.spoiled
        if core.at.world > 1:
            shared = torch.tensor(float(bad), device=core.device)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
            bad = bool(shared)
        if not bad:
            return False
        self._put_buffers_back()
        core.recorder.release(keep=False)
        core.at.records = {}
        name = finite_weights(core.model)
        if name is not None:
            raise NonFiniteError(
                f"step {core.at.index}: {name!r} is not finite since an earlier update, and no batch that is left out"
                " mends it; go back to the last checkpoint, with a lower learning rate"
            )
        core.update.skipped += 1
        if self._why:
            warnings.warn(f"{self._why}; the step is left out, as further ones will be, counted alone", stacklevel=2)
        return True

    def _look_at(self, parameters: Sequence[Tensor]) -> None:
        gradients = {str(place): p.grad for place, p in enumerate(parameters) if p.grad is not None}
        place = first_not_finite(gradients)
        if place is not None:
            names = {p: name for name, p in self._core.model.named_parameters()}
            told = f"the gradient of {names[parameters[int(place)]]!r} is not finite, though the loss is"
            self.spoil(lambda: f"step {self._core.at.index}: {told}")

    def keep(self) -> None:
        """End a step that is made."""
        self._core.recorder.release(keep=True)


def _nothing() -> None:
    """Put nothing back."""
