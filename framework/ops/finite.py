"""Search for infinities and NaN in tensors and in a network's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from framework.ops.patterns import is_norm
from framework.ops.shards import is_sharded, locals_of


@torch.no_grad()
def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with an entry that is infinite or not a number, None where there is none.

    One value is read from the device, however many tensors there are. Collective where a tensor is sharded: every rank
    must call it.
    """
    named = {name: t for name, t in tensors.items() if t.is_floating_point() or t.is_complex()}
    # a sparse tensor's norm is that of its values; an empty tensor has no largest entry
    parts = zip(named, locals_of(named.values()), strict=True)
    entries = {name: values for name, t in parts if (values := t._values() if t.is_sparse else t).numel()}
    flags = torch.zeros(len(named), dtype=torch.bool)
    if entries:
        largest = torch._foreach_norm(list(entries.values()), torch.inf)
        torch._foreach_mul_(largest, 0.0)  # 0 for finite norms, NaN for others
        read = torch.stack([value.float() for value in largest]).isnan().tolist()
        found = dict(zip(entries, read, strict=True))
        flags = torch.tensor([found.get(name, False) for name in named])
    if any(is_sharded(t) for t in named.values()):
        device = next(iter(entries.values())).device if entries else torch.get_default_device()
        shared = flags.to(device, torch.float32)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        flags = shared.cpu() > 0
    return next((name for name, flag in zip(named, flags.tolist(), strict=True) if flag), None)


def finite_weights(model: nn.Module) -> str | None:
    """Return the name of the first weight of a network that is not finite, None where all are.

    Running statistics of normalization layers count as weights: they outlive the batch that spoiled them. Other buffers
    may hold infinities on purpose, as masks do. Collective where parameters are sharded: every rank must call it.

    Args:
        model: the network.
    """
    statistics = {
        f"{layer}.{name}" if layer else name: buffer
        for layer, module in model.named_modules()
        if is_norm(module)
        for name, buffer in module.named_buffers(recurse=False)
    }
    return first_not_finite({**dict(model.named_parameters()), **statistics})
