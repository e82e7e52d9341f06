"""Edits of weights that are always undone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class WeightEdits:
    """Saves weights before they are edited in place and copies them back, bit for bit.

    Restoring by copy, not by subtraction: adding and subtracting drifts by rounding and lets ranks diverge. A weight
    edited by several plugins, or tied in several places, is saved once. The copies are kept for the next step, so a
    run holds at most one copy of the weights that are edited.
    """

    def __init__(self) -> None:
        self._copies: dict[Tensor, Tensor] = {}
        self._open: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def save(self, weights: Iterable[Tensor]) -> list[Tensor]:
        """Save weights that are about to be edited and return them, to be changed in place under ``no_grad``.

        Args:
            weights: parameters of the model.

        Example:
            >>> edits, w = WeightEdits(), torch.ones(2)
            >>> _ = torch._foreach_add_(edits.save([w]), 1.0)
            >>> edits.undo(); w.tolist()
            [1.0, 1.0]
        """
        weights = list(dict.fromkeys(weights))
        fresh = [weight for weight in weights if weight not in self._open]
        kept = []
        for weight in fresh:
            copy = self._copies.get(weight)
            if copy is None or copy.dtype != weight.dtype or copy.device != weight.device:
                copy = self._copies[weight] = torch.empty_like(weight, requires_grad=False)
            kept.append(copy)
        if fresh:
            torch._foreach_copy_(kept, [weight.detach() for weight in fresh])
            self._open.update(zip(fresh, kept, strict=True))
        return weights

    @torch.no_grad()
    def undo(self) -> None:
        """Put back every saved weight; without open edits it does nothing."""
        if self._open:
            torch._foreach_copy_([weight.detach() for weight in self._open], list(self._open.values()))
            self._open.clear()

    @property
    def open(self) -> bool:
        """Whether an edit is in force."""
        return bool(self._open)
