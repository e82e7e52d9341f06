"""Whether tensors, or the weights of a network, are finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from framework.ops.patterns import is_norm
from framework.ops.shards import is_sharded, locals_of


@torch.no_grad()
def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with an entry that is infinite or not a number, None where there is none.

    One number is read from the device, however many tensors there are. Where one is sharded, all ranks have to ask.
    """
    named = {name: t for name, t in tensors.items() if t.is_floating_point() or t.is_complex()}
    # the strided entries of a sparse tensor; no entry has no largest one
    parts = zip(named, locals_of(named.values()), strict=True)
    entries = {name: values for name, t in parts if (values := t._values() if t.is_sparse else t).numel()}
    flags = torch.zeros(len(named), dtype=torch.bool)
    if entries:
        largest = torch._foreach_norm(list(entries.values()), torch.inf)
        torch._foreach_mul_(largest, 0.0)  # zero, or no number
        read = torch.stack([value.float() for value in largest]).isnan().tolist()
        told = dict(zip(entries, read, strict=True))
        flags = torch.tensor([told.get(name, False) for name in named])
    if any(is_sharded(t) for t in named.values()):
        device = next(iter(entries.values())).device if entries else torch.get_default_device()
        shared = flags.to(device, torch.float32)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        flags = shared.cpu() > 0
    return next((name for name, flag in zip(named, flags.tolist(), strict=True) if flag), None)


def finite_weights(model: nn.Module) -> str | None:
    """Return the name of the first weight of the network that is not finite, None where all are.

    Running statistics of normalization layers count as weights: they outlive the batch that spoiled them. Other buffers
    may be infinite by intent, such as masks. Where parameters are sharded, all ranks have to ask.

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
