"""Clipping of gradients by their global norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def clip_by_norm_(gradients: Sequence[Tensor], limit: float) -> Tensor:
    r"""Scale gradients in place to a global norm of at most ``limit`` and return the norm before.

    .. math:: g_i \leftarrow g_i \cdot \min\left(1, \frac{c}{\lVert g\rVert_2 + 10^{-6}}\right), \qquad
        \lVert g\rVert_2 = \sqrt{\textstyle\sum_i \lVert g_i\rVert_2^2}

    Bit-identical to ``torch.nn.utils.clip_grad_norm_``, which groups gradients by device and type twice and takes twice
    as long for a small network.

    Args:
        gradients: tensors of any shape; sharded ones give the norm over all shards.
        limit: :math:`c`, above 0.

    Returns:
        The norm, a tensor of one element; not finite if a gradient is not.

    Example:
        >>> g = [torch.tensor([3.0]), torch.tensor([4.0])]
        >>> clip_by_norm_(g, 1.0), [round(x.item(), 4) for x in g]
        (tensor(5.), [0.6, 0.8])

    Source: Pascanu, Mikolov and Bengio (2013), On the difficulty of training recurrent neural networks.
    """
    if len({(type(one), one.dtype, one.device) for one in gradients}) != 1 or type(gradients[0]) is not Tensor:
        total = torch.nn.utils.get_total_norm(gradients)
        for one in gradients:
            one.mul_((limit / (total + 1e-6)).clamp(max=1.0).to(one.device))
        return total
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))
    factor = limit / (norm + 1e-6)
    if factor.device.type == "cpu":  # on other devices, reading the value would synchronize
        if factor.item() >= 1.0:
            return norm
    else:
        factor = factor.clamp(max=1.0)
    torch._foreach_mul_(list(gradients), factor)
    return norm
