"""The KL divergence of the firing rates of units from a target rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def rows_of_units(h: Tensor) -> Tensor:
    """Return activations as ``(rows, units)``.

    A unit is an entry of the last dimension, or for ``(samples, channels, height, width)`` and more dimensions an entry
    of the sample. The positions of a sequence are therefore rows, in any order of time and samples.
    """
    return h.flatten(1) if h.ndim > 3 else h.reshape(-1, h.shape[-1])


def kl(h: Tensor, rho: float, z: Tensor | None = None) -> Tensor:
    r"""Return the KL divergence of the units' mean activations from a target rate, summed over units.

    .. math::
        \sum_j \rho\log\frac{\rho}{\hat\rho_j} + (1 - \rho)\log\frac{1 - \rho}{1 - \hat\rho_j}, \qquad
        \hat\rho_j = \frac1R \sum_{r=1}^R h_j^{(r)}, \qquad
        \frac{\partial}{\partial h_j^{(r)}} =
        \frac1R\Bigl(-\frac{\rho}{\hat\rho_j} + \frac{1 - \rho}{1 - \hat\rho_j}\Bigr)

    For :math:`h = \operatorname{sigmoid}(z)` the slope along :math:`z_j` in all rows tends to :math:`-\rho` for a unit
    that is off and to :math:`1 - \rho` for one that is on, though h then rounds to 0 or 1. Given z, the logarithms of
    such rates are exact for any z:

    .. math::
        \log\hat\rho_j = \operatorname{logsumexp}_r \log\operatorname{sigmoid}(z_j^{(r)}) - \log R, \qquad
        \log(1 - \hat\rho_j) = \operatorname{logsumexp}_r \log\operatorname{sigmoid}(-z_j^{(r)}) - \log R

    Without z, a rate of exactly 0 or 1, where the slope is infinite, gets none.

    Args:
        h: activations in [0, 1]; rows as :func:`rows_of_units` has them.
        rho: the target :math:`\rho` in (0, 1).
        z: the logits of h, where h is their sigmoid.

    Example:
        >>> bool(kl(torch.tensor([[0.0, 0.2], [0.4, 0.2]]), rho=0.2).abs() < 1e-7)
        True
    """
    rate = rows_of_units(h).mean(0)
    on, off = _log_rates(h) if z is None else _log_rates_of(z)
    extreme = rho * on + (1 - rho) * off
    inner = rate.clamp(1e-6, 1 - 1e-6)
    usual = rho * inner.log() + (1 - rho) * torch.log1p(-inner)
    # 1 - rate cancels near 1
    far = (rate < 1e-6) | (rate > 1 - 1e-3)
    return -torch.where(far, extreme, usual).sum() - rate.numel() * _entropy(rho)


def _log_rates(h: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of mean activations and of their complements to 1; those of 0 are finite, without slope."""
    rows, least = rows_of_units(h), torch.finfo(h.dtype).tiny
    return rows.mean(0).clamp_min(least).log(), (1 - rows).mean(0).clamp_min(least).log()


def _log_rates_of(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of mean sigmoids and of their complements to 1."""
    rows = rows_of_units(z).clamp(-1e30, 1e30)  # infinite logits have no slope
    on, off = (F.logsigmoid(signed).logsumexp(0) - math.log(len(rows)) for signed in (rows, -rows))
    return on, off


def _entropy(rho: float) -> float:
    return -(rho * math.log(rho) + (1 - rho) * math.log(1 - rho))
