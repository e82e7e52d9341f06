"""The derivative of one optimizer update by its gradient, and Adam for a few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from framework.errors import UserError


def check_optimizer(optimizer: Optimizer) -> None:
    """Check that :func:`response` knows an optimizer's update.

    Raises:
        UserError: if it is none of SGD, Adam and AdamW, or has an option that changes the update.
    """
    kind = type(optimizer)
    if kind not in (SGD, Adam, AdamW):
        raise UserError(f"StrengthTuner: differentiates SGD, Adam and AdamW; the optimizer is {kind.__name__}")
    for group in optimizer.param_groups:
        for option in ("amsgrad", "maximize", "dampening"):
            if group.get(option):
                raise UserError(f"StrengthTuner: {kind.__name__}({option}={group[option]!r}) is not differentiated")


def response(
    optimizer: Optimizer, group: Mapping[str, Any], weight: Tensor, gradient: Tensor, before: Tensor
) -> Tensor:
    r"""Return how an update answers to its gradient, :math:`\partial U / \partial g`, entry by entry.

    With :math:`\theta_{t+1} = \theta_t - U(g)` and :math:`g' = g + \lambda\theta_t` where the decay
    :math:`\lambda` is part of the gradient (SGD, Adam):

    .. math::
        \text{SGD: } \eta, \text{ with Nesterov's momentum } \eta(1 + \mu); \qquad
        \text{Adam: } \eta\Big(\frac{1 - \beta_1}{b_1 D} -
        \frac{\hat m}{D^2}\frac{(1 - \beta_2) g'}{b_2\sqrt{\hat v}}\Big),

    :math:`D = \sqrt{\hat v} + \epsilon` and :math:`b_i = 1 - \beta_i^t`.

    Args:
        optimizer: SGD, Adam or AdamW, after the update.
        group: the weight's parameter group.
        weight: the weight.
        gradient: the gradient of the update.
        before: the weight's value before the update.
    """
    rate = float(group["lr"])
    if type(optimizer) is SGD:
        return torch.full_like(gradient, rate * (1 + group["momentum"] if group["nesterov"] else 1))
    state = optimizer.state[weight]
    first, second = (float(one) for one in group["betas"])
    count = float(state["step"])
    one, two = 1 - first**count, 1 - second**count
    if type(optimizer) is Adam and not group.get("decoupled_weight_decay", False):
        gradient = gradient + group["weight_decay"] * before
    root = (state["exp_avg_sq"] / two).sqrt()
    scale = root + group["eps"]
    slope = torch.where(root > 0, (1 - second) * gradient / (two * root.clamp_min(torch.finfo(root.dtype).tiny)), 0.0)
    found: Tensor = rate * ((1 - first) / (one * scale) - (state["exp_avg"] / one) * slope / scale**2)
    return found


def adam_step(
    gradient: float, mean: float, square: float, count: int, rate: float, betas: tuple[float, float] = (0.9, 0.999)
) -> tuple[float, float, float]:
    r"""Return the change of a number by Adam, and its moments.

    Args:
        gradient: the gradient.
        mean: first moment so far.
        square: second moment so far.
        count: number of this step, from 1.
        rate: learning rate.
        betas: decays of the moments.

    Example:
        >>> change, mean, square = adam_step(2.0, 0.0, 0.0, 1, 0.1)
        >>> round(change, 6)
        -0.1
    """
    mean = betas[0] * mean + (1 - betas[0]) * gradient
    square = betas[1] * square + (1 - betas[1]) * gradient**2
    corrected = mean / (1 - betas[0] ** count)
    return -rate * corrected / (math.sqrt(square / (1 - betas[1] ** count)) + 1e-12), mean, square
