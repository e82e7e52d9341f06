"""Saving and restoring a network's buffers, such as running statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from framework.ops.patterns import is_norm


def keep_buffers(model: nn.Module) -> Callable[[], None]:
    """Copy a network's buffers and return a function that restores those that have changed since, bit for bit.

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
        # torch updates running statistics without increasing their version, and keeps them in graphs whose backward
        # does not read them: writing through `data` leaves the version alone too
        changed = [(b.data, copy) for b, version, copy in before if id(b) in statistics or b._version != version]
        if changed:
            buffers, copies = zip(*changed, strict=True)
            torch._foreach_copy_(buffers, copies)

    return put_back
