"""Proximal operators of norms: soft thresholding of single entries, and of rows or columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from framework.ops.shards import completed
from framework.ops.units import Units

Groups = Literal["rows", "columns"]


def group_norms(
    weights: list[Tensor], groups: Groups, *, weigh: bool, units: Sequence[Units] | None = None
) -> list[Tensor]:
    r"""Return the norms of all groups, :math:`\sqrt{n_g}\|w_g\|` or :math:`\|w_g\| / \sqrt{n_g}`.

    Norms divided by the root are shaped to broadcast against the weight.

    Args:
        weights: tensors of at least two dimensions.
        groups: ``"rows"`` (what feeds one output unit) or ``"columns"`` (what one input feeds).
        weigh: multiply by :math:`\sqrt{n_g}`, with :math:`n_g` the number of entries of a group, rather than divide.
        units: where each weight has its output units and inputs; by default the first and the second dimension.
    """
    places = [Units()] * len(weights) if units is None else units
    kept = [place.out if groups == "rows" else place.into for place in places]
    # the second dimension counts the units of one block only: there, blocks are a dimension of their own
    blocks = [place.blocks if along == 1 else 1 for place, along in zip(places, kept, strict=True)]
    parts = [w if n == 1 else w.view(n, len(w) // n, *w.shape[1:]) for w, n in zip(weights, blocks, strict=True)]
    held = [(along,) if n == 1 else (0, 2) for along, n in zip(kept, blocks, strict=True)]
    # torch has no foreach reduction along a dimension: the one loop over tensors here
    norms = [
        torch.linalg.vector_norm(w, dim=[d for d in range(w.ndim) if d not in dims], keepdim=True)
        for w, dims in zip(parts, held, strict=True)
    ]
    counts = [w.numel() / math.prod(w.shape[d] for d in dims) for w, dims in zip(parts, held, strict=True)]
    root = [count ** (0.5 if weigh else -0.5) for count in counts]
    scaled = list(torch._foreach_mul(completed(norms), root))
    if weigh or set(blocks) <= {1}:
        return scaled
    return [
        norm if n == 1 else norm.expand(-1, part.shape[1], *[-1] * (norm.ndim - 2)).flatten(0, 1)
        for norm, part, n in zip(scaled, parts, blocks, strict=True)
    ]


def shrink(weights: list[Tensor], l1: float, l2: float = 0.0) -> None:
    r"""Take the proximal step of :math:`\lambda_1\|w\|_1 + \tfrac{\lambda_2}2\|w\|_2^2` in place: soft thresholding.

    .. math:: w_i \leftarrow \frac{\operatorname{sign}(w_i)\,\max(|w_i| - \lambda_1, 0)}{1 + \lambda_2}, \qquad
        \operatorname{sign}(w) = w / |w| \text{ also for complex } w

    Example:
        >>> w = torch.tensor([3.0, -0.5, -2.0])
        >>> shrink([w], 1.0); w.tolist()
        [2.0, 0.0, -1.0]
    """
    if any(weight.is_complex() for weight in weights):
        _foreach_shrink_absolute_(weights, l1)
    else:
        # w - clip(w, -t, t): three passes, and exact zeros, where sign(w) max(|w| - t, 0) takes five
        clipped = torch._foreach_clamp_min(weights, -l1)
        torch._foreach_clamp_max_(clipped, l1)
        torch._foreach_sub_(weights, clipped)
    if l2:
        torch._foreach_div_(weights, 1 + l2)


def _foreach_shrink_absolute_(weights: list[Tensor], threshold: float) -> None:
    """Shorten each entry by a threshold, down to 0."""
    factors = floored(torch._foreach_abs(weights))
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, -threshold)
    torch._foreach_add_(factors, 1.0)
    torch._foreach_clamp_min_(factors, 0.0)
    torch._foreach_mul_(weights, factors)


def floored(lengths: Sequence[Tensor]) -> list[Tensor]:
    """Raise lengths in place to the smallest normal number of their type, so that they can be divided by."""
    lengths = list(lengths)
    if len({length.dtype for length in lengths}) == 1:
        torch._foreach_clamp_min_(lengths, torch.finfo(lengths[0].dtype).tiny)
    else:
        for length in lengths:
            length.clamp_min_(torch.finfo(length.dtype).tiny)
    return lengths


def shrink_groups(
    weights: list[Tensor], threshold: float, groups: Groups, units: Sequence[Units] | None = None
) -> None:
    r"""Take the proximal step of :math:`\lambda\sum_g\sqrt{n_g}\|w_g\|_2` in place: whole groups become zero.

    .. math:: w_g \leftarrow w_g \max\Bigl(1 - \frac{\lambda\sqrt{n_g}}{\|w_g\|_2},\, 0\Bigr)
    """
    factors = floored(group_norms(weights, groups, weigh=False, units=units))
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, -threshold)
    torch._foreach_add_(factors, 1.0)
    torch._foreach_clamp_min_(factors, 0.0)
    torch._foreach_mul_(weights, factors)
