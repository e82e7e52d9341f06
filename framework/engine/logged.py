"""What was logged through Lightning's ``self.log`` in an epoch, kept in checkpoints within it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def state_of_logged(results: Any) -> dict[str, dict[str, Tensor]]:
    """Return the values so far of what is reduced over the epoch, as tensors on the CPU.

    Lightning itself loses them when a run is resumed within an epoch.

    Args:
        results: Lightning's collection of logged values, None outside of its loops.
    """
    return {
        key: {name: value.cpu() for name, value in _reduced(one).items()}
        for key, one in (results or {}).items()
        if one.is_tensor and one.meta.on_epoch and not one.meta.is_custom_reduction and one._update_count
    }


def add_logged(results: Any, kept: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Add the values of before a checkpoint to those that were logged since, by each value's own reduction.

    Args:
        results: Lightning's collection of logged values; an entry exists once something was logged.
        kept: what :func:`state_of_logged` returned.
    """
    for key, before in kept.items():
        one = results.get(key)
        if one is None:
            continue
        for name, value in _reduced(one).items():
            old = before[name].to(value.device)
            least, largest = one.meta.is_min_reduction, one.meta.is_max_reduction
            both = torch.minimum(old, value) if least else torch.maximum(old, value) if largest else old + value
            setattr(one, name, both)
        one._computed = None


def _reduced(one: Any) -> dict[str, Tensor]:
    names = ("value", "cumulated_batch_size") if one.meta.is_mean_reduction else ("value",)
    return {name: getattr(one, name) for name in names}
