"""Encodings of numbers as vectors, which a network takes more easily than the number alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def edges_of(x: Tensor, bins: int) -> Tensor:
    r"""Return the edges of bins that hold equally many rows, column by column: the rows' quantiles at t / T.

    Each edge is the value of a row, the nearest in rank, and not one between two rows.

    Args:
        x: ``(rows, columns)``; missing values (nan) do not count.
        bins: number of bins T.

    Returns:
        ``(columns, bins + 1)``, ascending; 0 in a column without a value.

    Example:
        >>> edges_of(torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]]), 2)
        tensor([[0., 2., 4.]])
    """
    at = torch.linspace(0, 1, bins + 1, dtype=torch.float64).tolist()
    columns = []
    for column in x.unbind(1):
        known = column[~column.isnan()].sort().values
        if not len(known):
            columns.append(x.new_zeros(bins + 1))
            continue
        columns.append(known[[round((len(known) - 1) * share) for share in at]])
    return torch.stack(columns)


def piecewise_linear(x: Tensor, edges: Tensor) -> Tensor:
    r"""Encode numbers by how far they have gone through each bin.

    .. math::
        e_t = \min\!\left(1, \max\!\left(0, \frac{x - b_{t-1}}{b_t - b_{t-1}}\right)\right), \quad t = 1, …, T

    A bin without width gives 0, and so does a missing value. Beyond the outer edges the encoding stays as it is at
    them: the number itself, if the network has it too, says how far beyond.

    Args:
        x: ``(…, columns)``.
        edges: b, ``(columns, T + 1)``.

    Returns:
        ``(…, columns, T)``.

    Example:
        >>> piecewise_linear(torch.tensor([[3.0]]), torch.tensor([[0.0, 2.0, 4.0]]))
        tensor([[[1.0000, 0.5000]]])

    Source: Gorishniy, Rubachev and Babenko (2022), On embeddings for numerical features in tabular deep learning.
    """
    low, width = edges[:, :-1], edges.diff(dim=1)
    share = ((x[..., None] - low) / width.where(width > 0, 1)).clamp(0, 1)
    return share.where(width > 0, 0).nan_to_num(0)


def periodic(x: Tensor, frequencies: Tensor) -> Tensor:
    r"""Encode numbers by sines and cosines, :math:`[\sin(2\pi c_l x), \cos(2\pi c_l x)]_l`; 0 for a missing value.

    Args:
        x: ``(…, columns)``.
        frequencies: c, ``(columns, k)``.

    Returns:
        ``(…, columns, 2k)``.

    Example:
        >>> periodic(torch.tensor([[0.25]]), torch.tensor([[1.0]])).round(decimals=4).abs()
        tensor([[[1., 0.]]])

    Source: as for :func:`piecewise_linear`.
    """
    angle = 2 * math.pi * frequencies * x[..., None]
    return torch.cat([angle.sin(), angle.cos()], dim=-1).nan_to_num(0)
