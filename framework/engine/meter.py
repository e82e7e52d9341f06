"""Running means that stay on the device and are read only when they are logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from framework.ops.shards import whole


class Meter:
    """Weighted means of named scalars.

    ``add`` only keeps a reference, so that no step synchronizes with a device; ``means`` stacks and reads the values.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._weights: dict[str, list[float]] = {}
        self._sums: dict[str, Tensor] = {}
        self._totals: dict[str, float] = {}

    def add(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Add a value with a weight.

        Args:
            name: name of the mean.
            value: tensor of one element, without a graph.
            weight: the weight of the value in the mean.
        """
        values = self._values.get(name)
        if values is None:
            values = self._values[name] = []
            self._weights[name] = []
        values.append(value)
        self._weights[name].append(weight)
        if len(values) >= 256:
            self._fold(name)

    def _fold(self, name: str) -> None:
        values, weights = self._values.pop(name), self._weights.pop(name)
        stacked = torch.stack(values).flatten()
        # Apple's accelerator does not support float64
        stacked = stacked.to(torch.float32 if stacked.device.type == "mps" else torch.float64)
        total = torch.dot(stacked, stacked.new_tensor(weights))
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._totals[name] = self._totals.get(name, 0.0) + sum(weights)

    def means(self, *, over_ranks: bool = False) -> tuple[dict[str, float], dict[str, float]]:
        """Return means and sums of weights by name, and reset both.

        Args:
            over_ranks: reduce over all ranks. A collective: every rank must call it, with the same names.
        """
        for name in list(self._values):
            self._fold(name)
        names = list(self._sums)
        if not names:
            return {}, {}
        sums = torch.stack([self._sums[name] for name in names])
        table = torch.stack([sums, sums.new_tensor([self._totals[name] for name in names])])
        if over_ranks:
            torch.distributed.all_reduce(table)
        self._sums.clear()
        self._totals.clear()
        totals, weights = table.tolist()
        means = {name: t / w if w else float("nan") for name, t, w in zip(names, totals, weights, strict=True)}
        return means, dict(zip(names, weights, strict=True))

    def state(self) -> dict[str, Any]:
        """Return the values since the last reset, not yet summed: another order of summation rounds differently."""
        values = {name: torch.stack(kept).cpu() for name, kept in self._values.items()}
        sums = {name: total.cpu() for name, total in self._sums.items()}
        weights = {name: list(kept) for name, kept in self._weights.items() if name in values}
        return {"values": values, "weights": weights, "sums": sums, "totals": dict(self._totals)}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what :meth:`state` returned."""
        self._values = {name: list(kept.to(device).unbind()) for name, kept in state["values"].items()}
        self._weights = {name: list(kept) for name, kept in state["weights"].items()}
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self._totals = dict(state["totals"])


def scalars(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Read tensors of one element in one transfer. A collective if one is sharded: every rank must call it."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    read: dict[str, float] = {name: float(value) for name, value in values.items() if not isinstance(value, Tensor)}
    if tensors:
        flat = torch.stack([whole(value.detach()).float().reshape(()) for value in tensors.values()])
        read.update(zip(tensors, flat.tolist(), strict=True))
    return {name: read[name] for name in values}
