"""A checkpoint in memory, for what is to be written later."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (int, float, str, bool, type(None))
_LARGEST = 32 << 20  # bytes of the weights of a network whose checkpoints may be kept in memory


def is_small(model: nn.Module) -> bool:
    """Return whether a checkpoint of the network takes little memory, on every rank alike."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) <= _LARGEST


@torch.inference_mode(False)
def copy_of(content: Any) -> Any:
    """Return a copy of a checkpoint's content that later steps do not change, with its tensors on the CPU.

    Args:
        content: containers, tensors and plain data; what stands in several places still does, as in a file.
    """
    return _copy(content, {})


def _copy(content: Any, made: dict[Any, Any]) -> Any:
    kind = type(content)
    if kind in _PLAIN:
        return content
    if isinstance(content, Tensor):
        return _copy_of_tensor(content.detach(), made)
    if id(content) not in made:  # what stands in two places is written once, and the copy shall be too
        made[id(content)] = _copy_of_container(content, kind, made)
    return made[id(content)]


def _copy_of_container(content: Any, kind: type, made: dict[Any, Any]) -> Any:
    if kind is dict:
        return {key: value if type(value) in _PLAIN else _copy(value, made) for key, value in content.items()}
    if kind is list:
        return [_copy(value, made) for value in content]
    if kind is tuple:
        return tuple([_copy(value, made) for value in content])
    if isinstance(content, dict):  # such as the OrderedDict of a network
        same = copy.copy(content)
        same.update((key, _copy(value, made)) for key, value in content.items())
        return same
    return copy.deepcopy(content)


def _copy_of_tensor(tensor: Tensor, made: dict[Any, Any]) -> Tensor:
    if tensor.device.type != "cpu":
        return tensor.cpu()
    if not tensor.numel() or tensor.layout != torch.strided:  # no memory of which it could be a view
        return tensor.clone()
    memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
    if memory not in made:
        made[memory] = tensor.clone()
    copied: Tensor = made[memory]
    return copied
