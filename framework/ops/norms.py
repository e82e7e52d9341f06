"""Norms of weights as penalties, and their gradients in closed form."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from framework.ops.proximal import Groups, floored, group_norms
from framework.ops.shards import completed
from framework.ops.units import Units


def norm(weights: list[Tensor], p: float) -> Tensor:
    r"""Return the norm penalty over all entries of all tensors, in the widest of their types.

    .. math:: \Omega_p(w) = \frac1p \sum_i |w_i|^p, \qquad \Omega_2 = \tfrac12\|w\|_2^2, \quad \Omega_1 = \|w\|_1

    Example:
        >>> norm([torch.tensor([3.0, -4.0])], 2).item(), norm([torch.tensor([3.0, -4.0])], 1).item()
        (12.5, 7.0)
    """
    return stacked(completed(torch._foreach_norm(_wide(weights), p))).pow(p).sum() / p


def _wide(weights: list[Tensor]) -> list[Tensor]:
    """Return tensors with those of half precision in float32, in which a sum over them is right."""
    half = (torch.float16, torch.bfloat16)
    return [w.float() if w.dtype in half else w for w in weights] if any(w.dtype in half for w in weights) else weights


def stacked(values: list[Tensor]) -> Tensor:
    """Return values as one tensor, in the widest of their types."""
    if len({value.dtype for value in values}) > 1:
        widest = functools.reduce(torch.promote_types, [value.dtype for value in values])
        values = [value.to(widest) for value in values]
    return torch.stack(values)


def add_norm_gradient(gradients: list[Tensor], weights: list[Tensor], alpha: float, p: float) -> None:
    r"""Add the gradient of :func:`norm`, times a strength, in place.

    .. math:: (\nabla\Omega_p)_i = \operatorname{sign}(w_i)\,|w_i|^{p-1}, \qquad 0 \text{ at } w_i = 0

    with :math:`\operatorname{sign}(w) = w / |w|` also for complex w, whose gradient is torch's, twice that by the
    conjugate of w.

    Example:
        >>> g = [torch.zeros(1, dtype=torch.complex64)]
        >>> add_norm_gradient(g, [torch.tensor([3 + 4j])], 1.0, p=1); g
        [tensor([0.6000+0.8000j])]
    """
    if p == 2:
        slope = weights
    else:
        complex_ = any(weight.is_complex() for weight in weights)
        slope = [weight.sgn() for weight in weights] if complex_ else list(torch._foreach_sign(weights))
        if p != 1:
            size = torch._foreach_abs(weights)
            torch._foreach_pow_(size, p - 1)
            torch._foreach_mul_(slope, size)
    torch._foreach_add_(gradients, slope, alpha=alpha)


def group_norm(weights: list[Tensor], groups: Groups, units: Sequence[Units] | None = None) -> Tensor:
    r"""Return the group lasso penalty, where a group is what feeds one output unit (rows) or what one input feeds.

    .. math:: \Omega(w) = \sum_g \sqrt{n_g}\, \|w_g\|_2, \qquad n_g = \text{entries of group } g
    """
    return stacked([one.sum() for one in group_norms(_wide(weights), groups, weigh=True, units=units)]).sum()


def add_group_gradient(
    gradients: list[Tensor], weights: list[Tensor], alpha: float, groups: Groups, units: Sequence[Units] | None = None
) -> None:
    r"""Add the gradient of :func:`group_norm`, times a strength, in place.

    .. math:: (\nabla\Omega)_g = \sqrt{n_g}\, \frac{w_g}{\|w_g\|_2}, \qquad 0 \text{ at } w_g = 0
    """
    lengths = floored(group_norms(weights, groups, weigh=False, units=units))
    torch._foreach_addcdiv_(gradients, weights, lengths, value=alpha)
