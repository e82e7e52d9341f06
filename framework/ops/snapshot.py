"""A copy of a network's parameters and buffers that can be taken again and restored in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from framework.ops.shards import copy_into, is_sharded, laid_out_as


class Snapshot:
    """A copy of a network's parameters and buffers, on their devices.

    The copy is overwritten when it is taken again, which allocates nothing.

    Args:
        tensors: copies by qualified name, such as those from a checkpoint.

    Example:
        >>> model, snapshot = nn.Linear(1, 1, bias=False), Snapshot()
        >>> before = model.weight.item()
        >>> snapshot.take(model)
        >>> _ = nn.init.constant_(model.weight, 7.0)
        >>> snapshot.put_back(model)
        >>> model.weight.item() == before
        True
    """

    def __init__(self, tensors: dict[str, Tensor] | None = None) -> None:
        self.tensors = tensors or {}

    # Lightning validates in inference mode, and tensors made there cannot be changed in place outside of it
    @torch.inference_mode(False)
    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Copy the network's current parameters and buffers into the snapshot."""
        now = tensors_of(model)
        kept = {name: tensor for name, tensor in self.tensors.items() if name in now and _alike(tensor, now[name])}
        self.tensors = {name: kept[name] if name in kept else torch.empty_like(tensor) for name, tensor in now.items()}
        copy_into(list(self.tensors.values()), list(now.values()))

    @torch.inference_mode(False)
    @torch.no_grad()
    def put_back(self, model: nn.Module) -> None:
        """Copy the snapshot back into the network, bit for bit."""
        now = tensors_of(model)
        kept = [laid_out_as(tensor, now[name]) for name, tensor in self.tensors.items()]
        copy_into([now[name] for name in self.tensors], kept)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's parameters and buffers by qualified name; tied parameters are listed once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _alike(one: Tensor, other: Tensor) -> bool:
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return alike and is_sharded(one) == is_sharded(other)
