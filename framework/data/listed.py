"""Lists that hold batches where samples are expected: what shows it surely, and what only may be so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from framework.data.parts import Columns, is_held
from framework.data.trees import leaves_of
from framework.errors import UserError

REMEDY = "give DataLoader(batches, batch_size=None), which yields each item of the list as a batch"


def check_listed(parts: Mapping[str, Any]) -> None:
    """Check that no part is a list of batches, which another part shows: its samples are shaped as rows of the items.

    Shapes of a list alone tell nothing: ``(32, 20)`` beside ``(32,)`` may be 32 samples, or a sequence of 32 places
    with a target for each. Only beside a part whose samples have the shapes ``(20,)`` and ``()`` it is surely a batch,
    since input and target of a network have one number of dimensions.

    Args:
        parts: the parts by name, None for those that there are not.

    Raises:
        UserError: if a list holds batches.
    """
    for name, part in parts.items():
        if not may_hold_batches(part):
            continue
        items = _shapes(part[0])
        for other, samples in parts.items():
            if other != name and items is not None and _rows(items) == _sample_shapes(samples):
                raise UserError(
                    f"Data({name}=...): each item of the list holds {items[0][0]} samples as Data({other}=...) has"
                    f" them, shapes {_text(items)} for {_text(_rows(items))}, so the items are batches; {REMEDY}"
                )


def may_hold_batches(part: Any) -> bool:
    """Return whether a part is a list whose first item may be a batch: parts of one length, 2 or more.

    Example:
        >>> import torch
        >>> may_hold_batches([(torch.zeros(32, 20), torch.zeros(32))]), may_hold_batches([(torch.zeros(20), 1)])
        (True, False)
    """
    if not isinstance(part, list) or not part:
        return False
    shapes = _shapes(part[0])
    if shapes is None or len(shapes) < 2 or not all(shapes):
        return False
    return len({shape[0] for shape in shapes}) == 1 and shapes[0][0] > 1


def hint_of(part: Any) -> str:
    """Return what to add to a message on shapes that do not fit, empty if the part cannot be a list of batches."""
    return f"; if each item of the list is a batch, {REMEDY}" if may_hold_batches(part) else ""


def _shapes(sample: Any) -> list[tuple[int, ...]] | None:
    """Return the shapes of all that a sample holds, None if it holds other things than numbers."""
    if not isinstance(sample, (tuple, list, Mapping)):
        return None
    leaves = leaves_of(sample)
    if not all(isinstance(one, (Tensor, np.ndarray, np.generic, int, float)) for one in leaves):
        return None
    return [tuple(getattr(one, "shape", ())) for one in leaves]


def _sample_shapes(part: Any) -> list[tuple[int, ...]] | None:
    if is_held(part):
        return _rows([tuple(one.shape) for one in leaves_of(part.tree if isinstance(part, Columns) else part)])
    return _shapes(part[0]) if isinstance(part, list) and part else None


def _rows(shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [shape[1:] for shape in shapes]


def _text(shapes: list[tuple[int, ...]]) -> str:
    more = " ..." if len(shapes) > 4 else ""
    return " and ".join(map(str, shapes[:4])) + more
