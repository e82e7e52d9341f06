"""Temporary in-place edits of weights, undone bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from framework.ops.shards import copy_into


class WeightEdits:
    """Saves weights before they are edited in place and copies them back, bit for bit.

    Weights are restored by copy because adding and subtracting an edit accumulates rounding errors and lets ranks
    diverge. A weight that several plugins edit, or that is tied, is saved once. The memory of the copies is reused in
    the next step, so a run holds at most one copy of the edited weights (one more per level of nesting).
    """

    def __init__(self) -> None:
        self._copies: list[dict[Tensor, Tensor]] = [{}]
        self._levels: list[dict[Tensor, Tensor]] = [{}]

    def save(self, weights: Iterable[Tensor]) -> list[Tensor]:
        """Save weights before an edit and return them, to be changed in place under ``no_grad``.

        Args:
            weights: parameters or buffers of the model; repeated ones are saved and returned once.

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
        """Return a tensor like each weight, reused from an earlier step where possible."""
        copies = self._copies[len(self._levels) - 1]
        kept = [copies.get(weight) for weight in weights]
        for place, (weight, copy) in enumerate(zip(weights, kept, strict=True)):
            if copy is None or copy.dtype != weight.dtype or copy.device != weight.device:
                # Lightning evaluates in inference mode, and tensors created there cannot be written outside of it
                with torch.inference_mode(False):
                    kept[place] = copies[weight] = torch.empty_like(weight, requires_grad=False)
        return cast(list[Tensor], kept)

    def undo(self) -> None:
        """Restore every weight saved at the current level of nesting; does nothing if none is."""
        saved = self._levels[-1]
        if saved:
            copy_into(list(saved), list(saved.values()))
            saved.clear()

    @contextmanager
    def nested(self, *, rare: bool = False) -> Iterator[None]:
        """Return a context whose edits are undone on exit, back to the weights at entry; edits made before stay.

        Args:
            rare: free the memory of the copies on exit, for a context that is not entered in every step.
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
        """Return the copy of a weight from before all current edits, or None if it is not edited."""
        return next((level[weight] for level in self._levels if weight in level), None)

    @property
    def open(self) -> bool:
        """Whether any weight is edited at the moment."""
        return any(self._levels)
