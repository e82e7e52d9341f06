"""Weights as matrices of output units by inputs, and functions of such matrices with their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from framework.ops.units import Units


def as_matrices(weight: Tensor, units: Units) -> Tensor:
    """Return a weight as matrices ``(blocks, output units, inputs)``, the positions of a kernel being inputs.

    Example:
        >>> as_matrices(torch.zeros(6, 2, 3, 3), Units(blocks=2)).shape
        torch.Size([2, 3, 18])
    """
    blocks = weight.reshape(_shape(weight, units))
    return (blocks if units.out == 0 else blocks.transpose(1, 2)).flatten(2)


def as_weight(matrices: Tensor, weight: Tensor, units: Units) -> Tensor:
    """Return matrices in the shape of the weight that :func:`as_matrices` made them of."""
    shape = _shape(weight, units)
    if units.out == 0:
        return matrices.reshape(shape).flatten(0, 1)
    turned = (shape[0], shape[2], shape[1], *shape[3:])
    return matrices.reshape(turned).transpose(1, 2).flatten(0, 1)


def _shape(weight: Tensor, units: Units) -> tuple[int, ...]:
    first, *rest = weight.shape
    return (units.blocks, first // units.blocks, *rest)


def orthogonality(w: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return how far rows are from orthonormal, or columns where there are fewer of them, and the gradient.

    .. math::
        \Omega = \tfrac12 \lVert W W^\top - I\rVert_F^2, \quad \nabla\Omega = 2\,(W W^\top - I)\,W
        \;\text{(rows)}, \qquad
        \Omega = \tfrac12 \lVert W^\top W - I\rVert_F^2, \quad \nabla\Omega = 2\,W\,(W^\top W - I) \;\text{(columns)}

    Args:
        w: ``(blocks, rows, columns)``; Ω is summed over blocks.

    Example:
        >>> orthogonality(2 * torch.eye(2)[None])[0]
        tensor(9.)
    """
    rows, columns = w.shape[1:]
    gram = w @ w.mT if rows <= columns else w.mT @ w
    off = gram - torch.eye(len(gram[0]), dtype=w.dtype, device=w.device)
    return off.square().sum() / 2, 2 * (off @ w if rows <= columns else w @ off)


def spectral(w: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return half the squared largest singular value and its gradient.

    .. math:: \Omega = \tfrac12\sigma_1^2, \qquad \nabla\Omega = \sigma_1 u_1 v_1^\top

    Args:
        w: ``(blocks, rows, columns)``; the values are summed over blocks.

    Example:
        >>> spectral(torch.diag(torch.tensor([3.0, 1.0]))[None])[0]
        tensor(4.5000)
    """
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return s[:, 0].square().sum() / 2, s[:, :1, None] * u[:, :, :1] @ vh[:, :1]


def nuclear(w: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the sum of singular values and its gradient.

    .. math:: \Omega = \sum_i\sigma_i, \qquad \nabla\Omega = \sum_{\sigma_i > 0} u_i v_i^\top

    Where a singular value is 0 the sum has no gradient, and 0 is used; 0 is what rounding may leave of it.

    Args:
        w: ``(blocks, rows, columns)``; the values are summed over blocks.

    Example:
        >>> nuclear(torch.diag(torch.tensor([3.0, 1.0]))[None])[0]
        tensor(4.)
    """
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    counts = s > s[:, :1] * max(w.shape[1:]) * torch.finfo(w.dtype).eps
    return s.sum(), (u * counts[:, None]) @ vh
