"""Running statistics of batch norms, measured again for weights that they were not measured with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.ops.buffers import keep_buffers
from framework.plugin.host import Host


def norms_of(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the layers whose running statistics a forward pass updates now, which it does not if they are frozen."""
    found = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    return [one for one in found if one.training and one.track_running_stats]


def statistics_of(norms: list[nn.modules.batchnorm._BatchNorm]) -> list[Tensor]:
    """Return the running statistics of norms, which :func:`estimate` changes."""
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def estimate(core: Host, norms: list[nn.modules.batchnorm._BatchNorm], batches: int, key: int) -> None:
    """Compute running statistics as means over training batches, the same batches on every rank.

    No other buffer of the network changes, and no other draws.

    Args:
        core: the core, in the modes in which its network trains.
        norms: the layers.
        batches: number of training batches.
        key: 64-bit key of what layers draw, such as dropout: equal keys give equal statistics.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None makes torch use a plain mean
    devices = [core.device] if core.device.type == "cuda" else []
    put_back = keep_buffers(core.model, leave_out={*statistics_of(norms)})
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(key >> 1)
            for batch in core.training_batches(batches):
                core.again.look(batch)
    finally:
        put_back()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
