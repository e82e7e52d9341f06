"""``MixedTarget``: a weighted mixture of targets, and its loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from framework.data.trees import map_leaves
from framework.errors import UserError


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

    def mix(
        self, permutation: Tensor, weight: float, who: str = "MixedTarget", fixed: Collection[int] = ()
    ) -> MixedTarget:
        """Mix again: ``weight`` of each target with ``1 - weight`` of the target at ``permutation``.

        A target of several tensors, such as a tuple or a mapping, keeps its type; each of its tensors is permuted.

        Args:
            permutation: the samples' partners, ``(samples,)``.
            weight: the share of each sample's own target, in [0, 1].
            who: the plugin that errors name.
            fixed: ids of tensors that are not permuted, such as masks that were mixed by pixels.

        Raises:
            UserError: if a part of the target is not a tensor with one row per sample.
        """

        def partner(leaf: Any) -> Any:
            if id(leaf) in fixed:
                return leaf
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == len(permutation):
                return leaf[permutation]
            given = f"a tensor of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise UserError(
                f"{who}: mixes targets whose tensors have one row per sample, here {len(permutation)}; received {given}"
                " in the target: leave it out of the target, by Data(collate=...), or leave the plugin out"
            )

        kept = [(target, share * weight) for target, share in self.pairs]
        partners = [(map_leaves(target, partner), share * (1 - weight)) for target, share in self.pairs]
        return MixedTarget((*kept, *partners), self.clean)

    @staticmethod
    def of(target: Any) -> MixedTarget:
        """Return ``target`` as a mixture; a mixture is returned as it is."""
        return target if isinstance(target, MixedTarget) else MixedTarget(((target, 1.0),), target)

    def to(self, device: torch.device | str) -> MixedTarget:
        """Return the mixture with its tensors on ``device``."""

        def moved(leaf: Any) -> Any:
            return leaf.to(device) if isinstance(leaf, Tensor) else leaf

        pairs = tuple((map_leaves(target, moved), weight) for target, weight in self.pairs)
        return MixedTarget(pairs, map_leaves(self.clean, moved))


def loss_of(loss: Callable[[Any, Any], Tensor], prediction: Any, target: Any) -> Tensor:
    """Return ``loss(prediction, target)``, summed over the weighted pairs of a :class:`MixedTarget`."""
    if not isinstance(target, MixedTarget):
        return loss(prediction, target)
    terms = [loss(prediction, one) * weight for one, weight in target.pairs if weight]
    return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


def clean_target(target: Any) -> Any:
    """Return the target before any mixing."""
    return target.clean if isinstance(target, MixedTarget) else target
