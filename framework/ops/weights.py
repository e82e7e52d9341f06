"""Named weights that are treated alike: selected by pattern, filtered, and cut into pieces."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from framework.errors import UserError
from framework.ops.patterns import select_weights

_IN_CACHE = 1 << 17


class Training:
    """Follows which of some weights train, as layers are frozen and unfrozen during a run.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> training = Training([weight])
        >>> training.changed(), bool(weight.requires_grad_(False).sum()), training.changed(), training.changed()
        (False, True, True, False)
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = list(weights)
        self._flags = [weight.requires_grad for weight in self._weights]

    def changed(self) -> bool:
        """Return whether other weights train than at the last call, or at first than at construction."""
        flags = [weight.requires_grad for weight in self._weights]
        if flags == self._flags:
            return False
        self._flags = flags
        return True


@dataclasses.dataclass
class Weights:
    """Weights with their names and, if any, the reference values :math:`w_0` that they are measured from.

    Args:
        pattern: the pattern that selected them.
        names: their qualified names.
        weights: the weights.
        start: the reference values, empty for zero.
    """

    pattern: str
    names: list[str]
    weights: list[Tensor]
    start: list[Tensor] = dataclasses.field(default_factory=list)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each weight with its name."""
        return zip(self.names, self.weights, strict=True)

    def offset(self) -> list[Tensor]:
        """Return w - w₀: the weights themselves, or a new list of differences."""
        return list(torch._foreach_sub(self.weights, self.start)) if self.start else self.weights

    def only(self, chosen: Sequence[bool]) -> Weights:
        """Return the weights for which ``chosen`` is true."""
        names, weights, start = (
            compress(self.names, chosen),
            compress(self.weights, chosen),
            compress(self.start, chosen),
        )
        return Weights(self.pattern, [*names], [*weights], [*start])

    def trained(self) -> Weights:
        """Return the weights without frozen ones; a trainable weight without a gradient gets one of zeros."""
        for weight in self.weights:
            if weight.grad is None and weight.requires_grad:
                weight.grad = torch.zeros_like(weight)
        return self.only([weight.grad is not None for weight in self.weights])

    def cut(self) -> Iterator[Weights]:
        """Yield pieces to work on one after the other: on a CPU small enough for its cache, elsewhere all at once."""
        # several passes over what stays in a processor's cache cost half of passes over everything in turn
        limit = _IN_CACHE if all(weight.device.type == "cpu" for weight in self.weights) else math.inf
        low, size = 0, 0
        for high, weight in enumerate(self.weights):
            if high > low and size + weight.numel() > limit:
                yield self._between(low, high)
                low, size = high, 0
            size += weight.numel()
        if self.weights:
            yield self._between(low, len(self.weights))

    def by_group(self, groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Weights]]:
        """Yield the weights that each of an optimizer's parameter groups holds, with the index of the group."""
        owner = {id(weight): index for index, group in enumerate(groups) for weight in group["params"]}
        owners = [owner.get(id(weight)) for weight in self.weights]
        for index in sorted({found for found in owners if found is not None}):
            yield index, self.only([found == index for found in owners])

    def _between(self, low: int, high: int) -> Weights:
        return Weights(self.pattern, self.names[low:high], self.weights[low:high], self.start[low:high])


def split_by_pattern(
    model: nn.Module,
    chosen: Mapping[str, Tensor],
    patterns: Iterable[str],
    *,
    who: str,
    biases: bool = False,
    frozen: bool = False,
) -> list[Weights]:
    """Return the chosen weights by the first pattern that matches each; those that none matches are left out.

    Args:
        model: the network.
        chosen: weights by qualified name.
        patterns: see :func:`framework.ops.patterns.select_weights`.
        who: what the error names, such as ``"NormPenalty(alpha=)"``.
        biases: whether patterns match biases and norm gains as well.
        frozen: whether frozen weights are among the chosen ones.

    Raises:
        UserError: where a pattern matches no weight, or none that an earlier pattern has left.
    """
    left, parts = dict(chosen), []
    for pattern in patterns:
        matched = select_weights(model, pattern, who=who, biases=biases, frozen=frozen)
        found = [name for name in matched if name in left]
        if not found:
            raise UserError(
                f"{who}: pattern {pattern!r} gets no weight that is left; the first match holds, so move it up, or"
                " widen weights="
            )
        parts.append(Weights(pattern, found, [left.pop(name) for name in found]))
    return parts
