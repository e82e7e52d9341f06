"""What samplers remember from epoch to epoch, as plain data for checkpoints."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler

# attributes of torch's own loaders and samplers that iterating does not change
_CONFIGURATION = frozenset(
    {"data_source", "dataset", "sampler", "batch_sampler", "collate_fn", "batch_size", "weights"}
)


def memory_of(loader: Any) -> dict[str, Any]:
    """Return the numbers, arrays and generator states that a loader and its samplers keep, by attribute.

    Iterating a sampler may change it: one that shuffles its list in place, or draws from a generator of its own, has
    another order in each epoch, which only its attributes determine.

    Args:
        loader: a loader of batches, by convention with ``sampler`` and ``batch_sampler``.

    Example:
        >>> from torch.utils.data import RandomSampler
        >>> sampler = RandomSampler(range(3), generator=torch.Generator().manual_seed(0))
        >>> kept = memory_of(sampler)
        >>> first = list(sampler)
        >>> recall(sampler, kept)
        >>> list(sampler) == first
        True
    """
    kept: dict[str, Any] = {}
    for place, one in _objects(loader):
        for name, value in vars(one).items():
            if name not in _CONFIGURATION and (state := _state_of(value)) is not None:
                kept[f"{place}.{name}"] = state
    return kept


def recall(loader: Any, kept: dict[str, Any]) -> None:
    """Restore what :func:`memory_of` returned, in place.

    Args:
        loader: a loader of the same kind.
        kept: the states.
    """
    for place, one in _objects(loader):
        for name, value in list(vars(one).items()):
            if f"{place}.{name}" in kept:
                _restore(one, name, value, kept[f"{place}.{name}"])


def forgotten(loader: Any) -> list[str]:
    """Return the attributes of the user's own samplers whose state cannot be kept, as ``Class.attribute``."""
    found = []
    for _, one in _objects(loader):
        if type(one).__module__.startswith("torch.") or not isinstance(one, Sampler):
            continue
        for name, value in vars(one).items():
            if name not in _CONFIGURATION and _state_of(value) is None and hasattr(value, "__next__"):
                found.append(f"{type(one).__name__}.{name}")
    return found


def _objects(loader: Any) -> Iterator[tuple[str, Any]]:
    """Yield the loader, its samplers, and the samplers within these, each once, with its place."""
    seen: set[int] = set()
    pending = [("loader", loader)]
    while pending:
        place, one = pending.pop()
        if id(one) in seen or not hasattr(one, "__dict__"):
            continue
        seen.add(id(one))
        yield place, one
        within = ("sampler", "batch_sampler") if isinstance(one, (DataLoader, BatchSampler, Sampler)) else ("sampler",)
        pending += [(f"{place}.{name}", vars(one)[name]) for name in within if vars(one).get(name) is not None]


def _state_of(value: Any) -> Any:
    """Return the state of an attribute as plain data, None if it has none or it cannot be kept."""
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return _plain(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return _plain(value.get_state(legacy=False))
    if isinstance(value, random.Random):
        version, words, gauss = value.getstate()
        return (version, torch.tensor(words), gauss)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufb":
        return torch.from_numpy(value.copy())
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list) and all(type(one) is int for one in value):
        return torch.tensor(value, dtype=torch.int64)
    return value if type(value) in (int, float, bool, str) else None


def _plain(state: Any) -> Any:
    """Return NumPy's state of a generator with arrays as tensors and large integers as text."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.astype(np.int64))
    if isinstance(state, np.generic):
        return state.item()
    return hex(state) if type(state) is int and state >= 2**63 else state


def _arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _arrays(value) for key, value in state.items()}
    if isinstance(state, Tensor):
        return state.numpy().astype(np.uint32)
    return int(state, 16) if isinstance(state, str) and state.startswith("0x") else state


def _restore(one: Any, name: str, value: Any, state: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(state)
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = _arrays(state)
    elif isinstance(value, np.random.RandomState):
        value.set_state(_arrays(state))
    elif isinstance(value, random.Random):
        version, words, gauss = state
        value.setstate((version, tuple(words.tolist()), gauss))
    elif isinstance(value, np.ndarray):
        value[...] = state.numpy()
    elif isinstance(value, Tensor):
        value.copy_(state)
    elif isinstance(value, list):
        value[:] = state.tolist()
    elif vars(one).get(name) != state:
        setattr(one, name, state)
