"""Saving and restoring a network's buffers, such as running statistics."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from framework.ops.patterns import is_norm


def keep_buffers(model: nn.Module, leave_out: Collection[Tensor] = ()) -> Callable[[], None]:
    """Copy a network's buffers and return a function that restores those that have changed since, bit for bit.

    Args:
        model: the network.
        leave_out: buffers that are not to be restored.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> put_back = keep_buffers(norm)
        >>> _ = norm(torch.full((2, 1), 8.0))
        >>> put_back(); norm.running_mean.item()
        0.0
    """
    skipped = {id(buffer) for buffer in leave_out}
    seen: set[int] = set()
    before = []
    for layer in model.modules():
        statistics = is_norm(layer)
        for name, buffer in layer._buffers.items():
            if buffer is not None and id(buffer) not in skipped:
                copy = None if id(buffer) in seen else buffer.clone()
                before.append((layer._buffers, name, buffer, buffer._version, copy, statistics))
                seen.add(id(buffer))

    def put_back() -> None:
        changed = []
        for owner, name, buffer, version, copy, statistics in before:
            if owner.get(name) is not buffer:  # the layer assigned another tensor
                owner[name] = buffer
            # torch updates running statistics without increasing their version, and keeps them in graphs whose backward
            # does not read them: writing through `data` leaves the version alone too
            if copy is not None and (statistics or buffer._version != version):
                changed.append((buffer.data, copy))
        if changed:
            buffers, copies = zip(*changed, strict=True)
            torch._foreach_copy_(buffers, copies)

    return put_back
