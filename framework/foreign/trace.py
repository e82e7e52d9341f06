"""Undo what a second evaluation changed in a LightningModule besides its weights and buffers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from framework.errors import UserError

_CONTAINERS = (list, dict, set, deque)


def keep_attributes(module: nn.Module) -> Callable[[], None]:
    """Remember the attributes of a module and its submodules, and return a function that puts them back.

    Numbers and other values are put back as they were, lists, dictionaries, sets and deques with their former items,
    and the states of torchmetrics by copy. Containers within containers are not looked into.

    Args:
        module: the module.

    Raises:
        UserError: by the returned function, if a tensor that is no parameter, buffer or metric was changed in place.

    Example:
        >>> module = nn.Identity()
        >>> module.seen = [1]
        >>> put_back = keep_attributes(module)
        >>> module.seen.append(2); module.count = 1
        >>> put_back(); module.seen, hasattr(module, "count")
        ([1], False)
    """
    kept = [(one, _attributes(one)) for one in module.modules()]

    def put_back() -> None:
        for one, before in kept:
            present = vars(one)
            for name in [name for name in present if name not in before]:
                del present[name]
            for name, (value, copy) in before.items():
                present[name] = value
                _refill(one, name, value, copy)

    return put_back


def _attributes(one: nn.Module) -> dict[str, tuple[Any, Any]]:
    states = one._defaults if isinstance(one, Metric) else ()
    return {name: (value, _copy(value, name in states)) for name, value in vars(one).items()}


def _copy(value: Any, is_state: bool) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if is_state else value._version
    return value.copy() if type(value) in _CONTAINERS else None


def _refill(one: nn.Module, name: str, value: Any, copy: Any) -> None:
    if isinstance(copy, Tensor):
        with torch.no_grad():
            value.copy_(copy)
    elif isinstance(value, Tensor):
        if value._version != copy:
            raise UserError(
                f"{type(one).__name__}.{name}: a second evaluation of a batch, which a plugin asked for, changed this"
                " tensor in place; register it as a buffer, which is put back, or leave the plugin out"
            )
    elif isinstance(value, list | deque):
        if len(value) != len(copy) or any(a is not b for a, b in zip(value, copy, strict=True)):
            value.clear()
            value.extend(copy)
    elif type(value) in _CONTAINERS:
        value.clear()
        value.update(copy)
