"""Pure functions of noise: additive, multiplicative, masking; and keyed normal numbers in pieces."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from framework.ops.keyed import Stream


def normals(
    stream: Stream, *where: int, room: int, start: int, size: int, device: torch.device | str = "cpu"
) -> Tensor:
    r"""Return entries ``start`` to ``start + size`` of a keyed vector of :math:`\mathcal N(0, 1)` draws, in float32.

    On a CPU the vector is the same however it is cut: it comes from :meth:`framework.ops.keyed.Stream.of_step`, or from
    ``Stream.normals`` where ``where`` names more than the step. On other devices torch's generator draws each piece,
    keyed by ``start`` as well.

    Args:
        stream: the random stream of the consumer.
        *where: step, micro-batch, rank, …
        room: length of the vector.
        start: index of the first entry.
        size: number of entries.
        device: device of the result.
    """
    if torch.device(device).type == "cpu":
        if len(where) == 1:
            return stream.of_step(where[0], room=room, start=start, size=size)
        return stream.normals(*where, start=start, size=size)
    return torch.randn(size, generator=stream.torch(*where, start, device=device), device=device)


def additive(x: Tensor, std: float | Tensor, noise: Tensor) -> Tensor:
    r"""Add noise: :math:`x + \sigma\varepsilon`.

    Example:
        >>> additive(torch.tensor([1.0, 2.0]), 0.5, torch.tensor([2.0, -2.0])).tolist()
        [2.0, 1.0]
    """
    return x + std * noise if isinstance(std, Tensor) else torch.add(x, noise, alpha=std)


def multiplicative(x: Tensor, std: float | Tensor, noise: Tensor) -> Tensor:
    r"""Multiply by noise around 1: :math:`x (1 + \sigma\varepsilon)`.

    Example:
        >>> multiplicative(torch.tensor([1.0, 2.0]), 0.5, torch.tensor([2.0, -2.0])).tolist()
        [2.0, 0.0]
    """
    return x * noise.mul(std).add_(1.0)


def masked(x: Tensor, rate: float | Tensor, uniform: Tensor, *, rescale: bool = False) -> Tensor:
    r"""Set random entries to zero: :math:`x\,\mathbb 1[u \ge p]`, divided by :math:`1 - p` on request.

    Args:
        x: a tensor.
        rate: the probability :math:`p` that an entry becomes 0.
        uniform: draws :math:`u` from [0, 1), shaped like ``x``.
        rescale: divide the entries that are kept by :math:`1 - p`, as dropout does, which preserves the mean.

    Example:
        >>> masked(torch.tensor([1.0, 2.0]), 0.5, torch.tensor([0.4, 0.5]), rescale=True).tolist()
        [0.0, 4.0]
    """
    kept = x.masked_fill(uniform < rate, 0.0)
    return kept / (1.0 - rate) if rescale else kept


def dropout_std(rate: float) -> float:
    r"""Return :math:`\sqrt{p / (1 - p)}`, the standard deviation of multiplicative noise that matches dropout.

    A dropout mask :math:`m / (1 - p)` with :math:`P(m = 0) = p` has mean 1 and variance :math:`p / (1 - p)`.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), Dropout, section 10.

    Example:
        >>> dropout_std(0.5)
        1.0
    """
    return math.sqrt(rate / (1.0 - rate))
