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
        content: containers, tensors and plain data.
    """
    return _copy(content)


def _copy(content: Any) -> Any:
    kind = type(content)
    if kind in _PLAIN:
        return content
    if kind is dict:
        return {key: value if type(value) in _PLAIN else _copy(value) for key, value in content.items()}
    if kind is list:
        return [_copy(value) for value in content]
    if kind is tuple:
        return tuple([_copy(value) for value in content])
    if isinstance(content, Tensor):
        content = content.detach()
        return content.clone() if content.device.type == "cpu" else content.cpu()
    if isinstance(content, dict):  # such as the OrderedDict of a network
        same = copy.copy(content)
        same.update((key, _copy(value)) for key, value in content.items())
        return same
    return copy.deepcopy(content)
