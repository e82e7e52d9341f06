"""Buffers of a network that are put back as they were: running statistics above all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from framework.ops.patterns import is_norm


def keep_buffers(model: nn.Module) -> Callable[[], None]:
    """Copy a network's buffers; the function returned puts those back, bit for bit, that changed since.

    Args:
        model: the network.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> put_back = keep_buffers(norm)
        >>> _ = norm(torch.full((2, 1), 8.0))
        >>> put_back(); norm.running_mean.item()
        0.0
    """
    before = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    statistics = {id(b) for layer in model.modules() if is_norm(layer) for b in layer.buffers(recurse=False)}

    def put_back() -> None:
        # torch moves running statistics without counting their version up, and keeps them in graphs whose backward does
        # not read them: `data` puts them back without counting either
        changed = [(b.data, copy) for b, version, copy in before if id(b) in statistics or b._version != version]
        if changed:
            buffers, copies = zip(*changed, strict=True)
            torch._foreach_copy_(buffers, copies)

    return put_back
