"""The norm of gradients, and their clipping."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from framework.errors import UserError


@torch.no_grad()
def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    r"""Return the global norm of gradients, :math:`\sqrt{\sum_i \lVert g_i\rVert_2^2}`.

    Torch's ``get_total_norm``, for sparse gradients as well: entries of one place, which torch keeps apart until they
    are needed, are added before.

    Args:
        gradients: tensors of any shape, real or complex, dense, sharded or sparse.

    Example:
        >>> total_norm([torch.tensor([[3.0], [0.0]]).to_sparse(), torch.tensor([4.0])])
        tensor(5.)
    """
    return torch.nn.utils.get_total_norm([one.coalesce().values() if one.is_sparse else one for one in gradients])


@torch.no_grad()
def clip_by_value_(parameters: Sequence[Tensor], limit: float) -> None:
    r"""Limit each entry of the parameters' gradients in place.

    .. math:: g_i \leftarrow \min(\max(g_i, -c), c)

    Args:
        parameters: parameters; those without a gradient are left out, and sparse gradients stay sparse.
        limit: :math:`c`, above 0.

    Raises:
        UserError: if a gradient is complex, where there is no order.
    """
    dense = []
    for place, parameter in enumerate(parameters):
        gradient = parameter.grad
        if gradient is not None and gradient.is_complex():
            raise UserError(
                f"clipping by value: parameter {place} of shape {tuple(parameter.shape)} is complex, and complex"
                " numbers have no order; clip by norm"
            )
        if gradient is not None and gradient.is_sparse:
            parameter.grad = gradient.coalesce()
            parameter.grad._values().clamp_(-limit, limit)
        else:
            dense.append(parameter)
    torch.nn.utils.clip_grad_value_(dense, limit)


@torch.no_grad()
def clip_by_norm_(gradients: Sequence[Tensor], limit: float) -> Tensor:
    r"""Scale gradients in place to a global norm of at most ``limit`` and return the norm before.

    .. math:: g_i \leftarrow g_i \cdot \min\left(1, \frac{c}{\lVert g\rVert_2 + 10^{-6}}\right), \qquad
        \lVert g\rVert_2 = \sqrt{\textstyle\sum_i \lVert g_i\rVert_2^2}

    Bit-identical to ``torch.nn.utils.clip_grad_norm_``, which groups gradients by device and type twice and takes twice
    as long for a small network.

    Args:
        gradients: tensors of any shape; sharded ones give the norm over all shards, sparse ones that of their values.
        limit: :math:`c`, above 0.

    Returns:
        The norm, a tensor of one element; not finite if a gradient is not.

    Example:
        >>> g = [torch.tensor([3.0]), torch.tensor([4.0])]
        >>> clip_by_norm_(g, 1.0), [round(x.item(), 4) for x in g]
        (tensor(5.), [0.6, 0.8])

    Source: Pascanu, Mikolov and Bengio (2013), On the difficulty of training recurrent neural networks.
    """
    kinds = {(type(one), one.dtype, one.device, one.layout) for one in gradients}
    if len(kinds) != 1 or type(gradients[0]) is not Tensor or gradients[0].is_sparse:
        total = total_norm(gradients)
        for one in gradients:
            values = one._values() if one.is_sparse else one
            values.mul_((limit / (total + 1e-6)).clamp(max=1.0).to(one.device))
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
