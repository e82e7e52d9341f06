"""What the framework takes a batch to be, and targets that are mixtures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from framework.errors import UserError

_PARTS = ("input", "target")


class Outcome(NamedTuple):
    """What one batch gave.

    Args:
        loss: the data loss J, a scalar: a mean over the batch's samples (or over what ``Core.count`` counts); None to
            leave the batch out.
        prediction: what the metrics see, None for nothing.
        target: what the metrics compare it with: the clean target.
    """

    loss: Tensor | None
    prediction: Any = None
    target: Any = None

    @staticmethod
    def of(answer: Any, where: str) -> Outcome:
        """Return what ``compute_loss`` gave as an outcome; the loss alone will do.

        Args:
            answer: an outcome or a loss.
            where: what is named in errors, such as ``"step 3"``.

        Raises:
            UserError: where the loss is not one number.
        """
        outcome = answer if isinstance(answer, Outcome) else Outcome(answer)
        loss = outcome.loss
        if loss is not None and not isinstance(loss, Tensor):
            kind = type(loss).__name__
            raise UserError(
                f"{where}: the loss is of type {kind}, not a tensor; return Outcome(loss, prediction, target)"
            )
        if loss is not None and loss.numel() != 1:
            shape = tuple(loss.shape)
            raise UserError(f"{where}: the loss has shape {shape}, not one number; return a mean over samples")
        return outcome


@dataclasses.dataclass(frozen=True)
class MixedTarget:
    r"""Targets under mixing: weighted pairs whose loss is the weighted mean of losses.

    .. math:: J = \sum_j w_j\, L(\hat y, y_j), \qquad \sum_j w_j = 1

    so that any loss works, and metrics keep the clean target.

    Args:
        pairs: ``(target, weight)`` pairs; each target has the clean target's shape.
        clean: the target of the samples before any mixing.
    """

    pairs: tuple[tuple[Any, float], ...]
    clean: Any

    def mix(self, permutation: Tensor, weight: float) -> MixedTarget:
        """Mix once more: ``weight`` of each target with ``1 - weight`` of the target at ``permutation``."""
        kept = [(target, share * weight) for target, share in self.pairs]
        partners = [(target[permutation], share * (1 - weight)) for target, share in self.pairs]
        return MixedTarget((*kept, *partners), self.clean)

    @staticmethod
    def of(target: Any) -> MixedTarget:
        """Return ``target`` as a mixture, itself where it is one already."""
        return target if isinstance(target, MixedTarget) else MixedTarget(((target, 1.0),), target)

    def to(self, device: torch.device | str) -> MixedTarget:
        """Return the mixture with its tensors on ``device``."""
        pairs = tuple((target.to(device), weight) for target, weight in self.pairs)
        return MixedTarget(pairs, self.clean.to(device))


def loss_of(loss: Callable[[Any, Any], Tensor], prediction: Any, target: Any) -> Tensor:
    """Return ``loss(prediction, target)``, summed over the weighted pairs of a :class:`MixedTarget`."""
    if not isinstance(target, MixedTarget):
        return loss(prediction, target)
    terms = [loss(prediction, one) * weight for one, weight in target.pairs if weight]
    return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


def clean_target(target: Any) -> Any:
    """Return the target as it was before any mixing."""
    return target.clean if isinstance(target, MixedTarget) else target


def input_of(batch: Any) -> Any:
    """Return a batch's input: the first of a tuple or list, the entry ``"input"`` of a mapping, a tensor itself."""
    return batch if isinstance(batch, Tensor) else _part(batch, "input")


def target_of(batch: Any) -> Any:
    """Return a batch's target: the second of a tuple or list, or the entry ``"target"`` of a mapping."""
    return _part(batch, "target")


def _part(batch: Any, name: str) -> Any:
    try:
        # whether something is a mapping takes Python longer to find out than the rest of this
        if not isinstance(batch, (tuple, list)) and isinstance(batch, Mapping):
            return batch[name]
        return batch[_PARTS.index(name)]
    except (LookupError, TypeError) as error:
        have = f"a mapping with {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise UserError(
            f"a batch is to be (input, target) or a mapping with 'input' and 'target'; this one is {have}, without"
            f" {name}: change Data(collate=...), or override compute_loss in a subclass of Core"
        ) from error


def replace(batch: Any, **parts: Any) -> Any:
    """Return a shallow copy of the batch with its ``input`` or ``target`` replaced."""
    if isinstance(batch, Mapping):
        return {**batch, **parts}
    if isinstance(batch, Tensor):
        return parts.get("input", batch)
    changed = list(batch)
    for name, value in parts.items():
        changed[_PARTS.index(name)] = value
    return tuple(changed)


def size_of(batch: Any) -> int:
    """Return the number of samples in a batch: the length of its input, or of a mapping's first entry without one."""
    if not isinstance(batch, (tuple, list)) and isinstance(batch, Mapping) and "input" not in batch:
        return len(next(iter(batch.values())))
    return len(input_of(batch))
