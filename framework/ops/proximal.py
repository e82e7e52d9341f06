"""Proximal operators of norms: soft thresholding of single entries, and of rows or columns."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from framework.ops.shards import completed

Groups = Literal["rows", "columns"]


def group_norms(weights: list[Tensor], groups: Groups, *, weigh: bool) -> list[Tensor]:
    r"""Return the norms of all groups, :math:`\sqrt{n_g}\|w_g\|` or :math:`\|w_g\| / \sqrt{n_g}`, shaped to broadcast.

    Args:
        weights: tensors of at least two dimensions.
        groups: ``"rows"`` (what feeds one output unit: an index of the first dimension) or ``"columns"``.
        weigh: multiply by :math:`\sqrt{n_g}`, with :math:`n_g` the number of entries of a group, rather than divide.
    """
    kept = 0 if groups == "rows" else 1
    # torch has no foreach reduction along a dimension: the one loop over tensors here
    norms = [torch.linalg.vector_norm(w, dim=[d for d in range(w.ndim) if d != kept], keepdim=True) for w in weights]
    root = [(w.numel() / w.shape[kept]) ** (0.5 if weigh else -0.5) for w in weights]
    return list(torch._foreach_mul(completed(norms), root))


def shrink(weights: list[Tensor], l1: float, l2: float = 0.0) -> None:
    r"""Take the proximal step of :math:`\lambda_1\|w\|_1 + \tfrac{\lambda_2}2\|w\|_2^2` in place: soft thresholding.

    .. math:: w_i \leftarrow \frac{\operatorname{sign}(w_i)\,\max(|w_i| - \lambda_1, 0)}{1 + \lambda_2}

    Example:
        >>> w = torch.tensor([3.0, -0.5, -2.0])
        >>> shrink([w], 1.0); w.tolist()
        [2.0, 0.0, -1.0]
    """
    # w - clip(w, -t, t): three passes, and exact zeros, where sign(w) max(|w| - t, 0) takes five
    clipped = torch._foreach_clamp_min(weights, -l1)
    torch._foreach_clamp_max_(clipped, l1)
    torch._foreach_sub_(weights, clipped)
    if l2:
        torch._foreach_div_(weights, 1 + l2)


def shrink_groups(weights: list[Tensor], threshold: float, groups: Groups) -> None:
    r"""Take the proximal step of :math:`\lambda\sum_g\sqrt{n_g}\|w_g\|_2` in place: whole groups become zero.

    .. math:: w_g \leftarrow w_g \max\Bigl(1 - \frac{\lambda\sqrt{n_g}}{\|w_g\|_2},\, 0\Bigr)
    """
    factors = group_norms(weights, groups, weigh=False)
    torch._foreach_clamp_min_(factors, torch.finfo(factors[0].dtype).tiny)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, -threshold)
    torch._foreach_add_(factors, 1.0)
    torch._foreach_clamp_min_(factors, 0.0)
    torch._foreach_mul_(weights, factors)
