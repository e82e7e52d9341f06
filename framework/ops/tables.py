"""Embedding tables of a network, and their rows that never train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from framework.ops.shards import laid_out_as


def tables(model: nn.Module) -> set[Tensor]:
    """Return the weights of embedding layers, also where another layer shares them.

    Example:
        >>> model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
        >>> model[1].weight = model[0].weight
        >>> tables(model) == {model[1].weight}
        True
    """
    return {layer.weight for layer in model.modules() if isinstance(layer, (nn.Embedding, nn.EmbeddingBag))}


def padding_rows(model: nn.Module) -> dict[Tensor, int]:
    """Return the row of each embedding table that ``padding_idx`` keeps from training.

    A table that another layer shares without this padding is left out: there the row trains.

    Example:
        >>> model = nn.Sequential(nn.Embedding(3, 2, padding_idx=1), nn.Linear(2, 3))
        >>> padding_rows(model) == {model[0].weight: 1}
        True
    """
    rows: dict[Tensor, set[int | None]] = {}
    for layer in model.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            table = isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and name == "weight"
            rows.setdefault(parameter, set()).add(layer.padding_idx if table else None)  # type: ignore[arg-type]
    found = {parameter: next(iter(of)) for parameter, of in rows.items() if len(of) == 1}
    return {parameter: row for parameter, row in found.items() if row is not None}


def other_rows(weight: Tensor, row: int) -> Tensor:
    """Return a mask of a weight's entries that is false in one row, sharded as the weight is.

    Example:
        >>> other_rows(torch.ones(2, 3), 1).tolist()
        [[True, True, True], [False, False, False]]
    """
    mask = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    mask[row] = False
    return laid_out_as(mask, weight)


def without_rows(tensors: Sequence[Tensor], weights: Sequence[Tensor], rows: Mapping[Tensor, int]) -> list[Tensor]:
    """Return tensors with copies, in which the row that never trains is 0, in place of those that belong to tables.

    Args:
        tensors: tensors shaped like the weights.
        weights: the weights, some of which are tables.
        rows: the row of each table that never trains.
    """
    return [
        tensor if (row := rows.get(weight)) is None else tensor * other_rows(weight, row)
        for tensor, weight in zip(tensors, weights, strict=True)
    ]
