"""Edits of weights that are always undone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from framework.ops.shards import copy_into


class WeightEdits:
    """Saves weights before they are edited in place and copies them back, bit for bit.

    Restoring by copy, not by subtraction: adding and subtracting drifts by rounding and lets ranks diverge. A weight
    edited by several plugins, or tied in several places, is saved once. The copies are kept for the next step, so a
    run holds at most one copy of the weights that are edited (one more for each level of nesting).
    """

    def __init__(self) -> None:
        self._copies: list[dict[Tensor, Tensor]] = [{}]
        self._levels: list[dict[Tensor, Tensor]] = [{}]

    def save(self, weights: Iterable[Tensor]) -> list[Tensor]:
        """Save weights that are about to be edited and return them, to be changed in place under ``no_grad``.

        Args:
            weights: parameters or buffers of the model.

        Example:
            >>> edits, w = WeightEdits(), torch.ones(2)
            >>> _ = torch._foreach_add_(edits.save([w]), 1.0)
            >>> edits.undo(); w.tolist()
            [1.0, 1.0]
        """
        weights = list(dict.fromkeys(weights))
        saved = self._levels[-1]
        fresh = [weight for weight in weights if weight not in saved] if saved else weights
        if fresh:
            kept = self._room_for(fresh)
            copy_into(kept, fresh)
            saved.update(zip(fresh, kept, strict=True))
        return weights

    def _room_for(self, weights: list[Tensor]) -> list[Tensor]:
        """Return a tensor like each weight, where there is one the one of the steps before."""
        copies = self._copies[len(self._levels) - 1]
        kept = [copies.get(weight) for weight in weights]
        for place, (weight, copy) in enumerate(zip(weights, kept, strict=True)):
            if copy is None or copy.dtype != weight.dtype or copy.device != weight.device:
                # Lightning evaluates in inference mode, whose tensors could not be written over outside of it
                with torch.inference_mode(False):
                    kept[place] = copies[weight] = torch.empty_like(weight, requires_grad=False)
        return cast(list[Tensor], kept)

    def undo(self) -> None:
        """Put back every weight saved at this level; without open edits it does nothing."""
        saved = self._levels[-1]
        if saved:
            copy_into(list(saved), list(saved.values()))
            saved.clear()

    @contextmanager
    def nested(self, *, rare: bool = False) -> Iterator[None]:
        """Open a level of edits inside those in force: undone by itself, to the weights as they are now.

        Args:
            rare: give the memory of its copies back, since no step needs it.
        """
        self._levels.append({})
        if len(self._copies) < len(self._levels):
            self._copies.append({})
        try:
            yield
        finally:
            self.undo()
            self._levels.pop()
            if rare:
                self._copies[len(self._levels)].clear()

    def before(self, weight: Tensor) -> Tensor | None:
        """Return the copy of a weight as it was before any edit in force, None where it is not edited."""
        return next((level[weight] for level in self._levels if weight in level), None)

    @property
    def open(self) -> bool:
        """Whether an edit is in force."""
        return any(self._levels)
