"""Tensors sharded across ranks by ``fully_shard``, where each rank holds a local shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from framework.errors import UserError


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is sharded across ranks."""
    return hasattr(tensor, "full_tensor")


def refuse_shards(weights: Iterable[Tensor], who: str) -> None:
    """Refuse sharded weights on behalf of a plugin that looks at whole output units.

    Args:
        weights: the weights.
        who: the plugin that the error names.

    Raises:
        UserError: if one is sharded.
    """
    if any(is_sharded(weight) for weight in weights):
        raise UserError(
            f"{who}: needs all weights of a unit, of which a rank has a part if parameters are sharded; use"
            " strategy='ddp'"
        )


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return this rank's local shards, which share memory with the tensors; other tensors are returned as they are.

    For operations entry by entry: copies, sums, noise.
    """
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def whole(value: Any) -> Any:
    """Return plain data with every sharded tensor gathered. Collective: every rank must call it."""
    if isinstance(value, Tensor):
        return value.full_tensor() if hasattr(value, "full_tensor") else value
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(whole(entry) for entry in value)
    return value


def laid_out_as(tensor: Tensor, weight: Any) -> Tensor:
    """Shard a full tensor as a weight is sharded; return it unchanged if the weight is not sharded.

    Args:
        tensor: full, on the weight's device, and the same on every rank; or sharded already.
        weight: parameter of the network, of the same shape.
    """
    if not hasattr(weight, "device_mesh") or hasattr(tensor, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # src_data_rank=None: every rank has the full tensor already, so nothing is sent
    return distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None)


def completed(norms: Iterable[Tensor]) -> list[Tensor]:
    """Reduce norms over all ranks, where torch has left the norms of the local shards."""
    return [_completed(norm) if hasattr(norm, "placements") else norm for norm in norms]


def _completed(norm: Any) -> Tensor:
    from torch.distributed.tensor import Replicate

    placements = [Replicate() if placement.is_partial() else placement for placement in norm.placements]
    complete: Tensor = norm.redistribute(placements=placements)
    return complete


def copy_into(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors into others that are sharded the same way."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return copy_into(targets, sources)
    with torch.no_grad():
        torch._foreach_copy_(locals_of(targets), locals_of(sources))
