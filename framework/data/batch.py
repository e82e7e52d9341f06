"""Input and target of a batch, the outcome of a loss, and mixed targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from framework.errors import UserError

_PARTS = ("input", "target")


class Outcome(NamedTuple):
    """The result of evaluating the network on one batch.

    Args:
        loss: the data loss J, a scalar: a mean over the batch's samples (or over what ``Core.count`` counts); None to
            skip the batch.
        prediction: the prediction for the metrics, None for none.
        target: the clean target for the metrics.
    """

    loss: Tensor | None
    prediction: Any = None
    target: Any = None

    @staticmethod
    def of(answer: Any, where: str) -> Outcome:
        """Convert what ``compute_loss`` returned to an outcome; it may return the loss alone.

        Args:
            answer: an outcome or a loss.
            where: what errors name, such as ``"step 3"``.

        Raises:
            UserError: if the loss is not one number.
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
    r"""A mixture of targets with weights; its loss is the weighted mean of the losses.

    .. math:: J = \sum_j w_j\, L(\hat y, y_j), \qquad \sum_j w_j = 1

    so any loss function works, and metrics use the clean target.

    Args:
        pairs: ``(target, weight)`` pairs; each target has the clean target's shape.
        clean: the samples' own target, before any mixing.
    """

    pairs: tuple[tuple[Any, float], ...]
    clean: Any

    def mix(self, permutation: Tensor, weight: float) -> MixedTarget:
        """Mix again: ``weight`` of each target with ``1 - weight`` of the target at ``permutation``."""
        kept = [(target, share * weight) for target, share in self.pairs]
        partners = [(target[permutation], share * (1 - weight)) for target, share in self.pairs]
        return MixedTarget((*kept, *partners), self.clean)

    @staticmethod
    def of(target: Any) -> MixedTarget:
        """Return ``target`` as a mixture; a mixture is returned as it is."""
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
    """Return the target before any mixing."""
    return target.clean if isinstance(target, MixedTarget) else target


def input_of(batch: Any) -> Any:
    """Return a batch's input: first item of a tuple or list, entry ``"input"`` of a mapping, or the tensor itself."""
    return batch if isinstance(batch, Tensor) else _part(batch, "input")


def target_of(batch: Any) -> Any:
    """Return a batch's target: second item of a tuple or list, or entry ``"target"`` of a mapping."""
    return _part(batch, "target")


def _part(batch: Any, name: str) -> Any:
    try:
        # testing for tuple and list first: isinstance with Mapping takes longer than the rest of this function
        if not isinstance(batch, (tuple, list)) and isinstance(batch, Mapping):
            return batch[name]
        return batch[_PARTS.index(name)]
    except (LookupError, TypeError) as error:
        have = f"a mapping with {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise UserError(
            f"a batch must be (input, target) or a mapping with 'input' and 'target'; this one is {have}, without"
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
    """Return the number of samples in a batch: length of its input, or of the first entry of a mapping without one."""
    if not isinstance(batch, (tuple, list)) and isinstance(batch, Mapping) and "input" not in batch:
        return len(next(iter(batch.values())))
    return len(input_of(batch))
