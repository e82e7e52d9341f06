"""Compare the weights that two runs end with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from framework.testing.result import Failed

Weights = Mapping[str, Tensor]


def difference(a: Weights, b: Weights) -> float:
    """Return the largest difference of any entry; infinite if names or shapes differ, or a difference is NaN.

    Example:
        >>> difference({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.0, 2.5])})
        0.5
    """
    if a.keys() != b.keys() or any(a[name].shape != b[name].shape for name in a):
        return float("inf")
    # in float64, so that the comparison itself does not round
    gaps = [(a[name].double() - b[name].double()).abs().max() for name in a if a[name].numel()]
    largest = float(torch.stack(gaps).max()) if gaps else 0.0
    return largest if largest == largest else float("inf")


def same_bits(a: Any, b: Any) -> bool:
    """Return True if two nested states of tensors and numbers are equal bit for bit, where NaN equals NaN.

    Example:
        >>> same_bits({"w": [torch.zeros(1)]}, {"w": [torch.zeros(1)]}), same_bits(1.0, 1.0 + 1e-15)
        (True, False)
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool(torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan()))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, (str, bytes)):
        return len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (a != a and b != b)


def demand_same_bits(a: Weights, b: Weights, what: str, *, excusable: bool = True) -> str:
    """Return a text for the result; raise :class:`Failed` if the weights differ in any bit."""
    if not same_bits(dict(a), dict(b)):
        raise Failed(f"{what}: largest difference {difference(a, b):.1e}", excusable=excusable)
    return "the same bits"


def demand_close(a: Weights, b: Weights, tolerance: float, what: str) -> str:
    """Return the largest difference as text; raise :class:`Failed` if it exceeds the tolerance."""
    gap = difference(a, b)
    if not gap <= tolerance:
        raise Failed(f"{what}: largest difference {gap:.1e}, tolerance {tolerance:.0e}")
    return f"largest difference {gap:.1e}"
