"""Which distribution a loss reads from a network's outputs."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch.nn.functional as F
from torch import nn

_OUTPUTS: dict[Any, str] = {
    F.cross_entropy: "softmax",
    F.nll_loss: "softmax",
    nn.CrossEntropyLoss: "softmax",
    nn.NLLLoss: "softmax",
    F.binary_cross_entropy_with_logits: "bernoulli",
    F.multilabel_soft_margin_loss: "bernoulli",
    nn.BCEWithLogitsLoss: "bernoulli",
    nn.MultiLabelSoftMarginLoss: "bernoulli",
    F.mse_loss: "normal",
    F.l1_loss: "normal",
    F.smooth_l1_loss: "normal",
    F.huber_loss: "normal",
    nn.MSELoss: "normal",
    nn.L1Loss: "normal",
    nn.SmoothL1Loss: "normal",
    nn.HuberLoss: "normal",
}


def outputs_of(loss: Any) -> str | None:
    """Return which distribution a loss reads from the network's outputs, None where that is not known.

    Torch's losses are known; another says so by an attribute ``outputs``.

    Example:
        >>> outputs_of(nn.BCEWithLogitsLoss()), outputs_of(F.mse_loss), outputs_of(len)
        ('bernoulli', 'normal', None)
    """
    while isinstance(loss, functools.partial):
        loss = loss.func
    if (told := getattr(loss, "outputs", None)) in ("softmax", "bernoulli", "normal"):
        return str(told)
    kind = next((one for one in type(loss).__mro__ if one in _OUTPUTS), None)
    if kind is not None:
        return _OUTPUTS[kind]
    return _OUTPUTS.get(loss) if isinstance(loss, types.FunctionType) else None
