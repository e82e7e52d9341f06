"""Parts of the data: a tuple of tensors or a map-style data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from framework.errors import UserError

Part = tuple[Tensor, ...] | Dataset[Any]


def is_ready(part: Any) -> bool:
    """Return whether a part already yields batches: a ``DataLoader``, or an iterable that cannot be indexed.

    Example:
        >>> is_ready(DataLoader([1.0])), is_ready((torch.zeros(1),)), is_ready(iter([1]))
        (True, False, True)
    """
    if isinstance(part, (DataLoader, IterableDataset, Dataset)):
        return isinstance(part, DataLoader)
    return hasattr(part, "__iter__") and not hasattr(part, "__getitem__") and not isinstance(part, Tensor)


def is_datamodule(part: Any) -> bool:
    """Return whether a part is a ``LightningDataModule``, of ``pytorch_lightning`` or ``lightning.pytorch``."""
    return any(base.__name__ == "LightningDataModule" for base in type(part).__mro__)


def length_of(part: Part) -> int:
    """Return the number of samples of a part."""
    return len(part[0]) if isinstance(part, tuple) else len(part)  # type: ignore[arg-type]


def as_dataset(part: Part) -> Dataset[Any]:
    """Return a part as a map-style data set."""
    return torch.utils.data.TensorDataset(*part) if isinstance(part, tuple) else part


def checked(name: str, part: Any) -> Part:
    """Check that a part can be cut into batches and return it; a list of tensors becomes a tuple.

    Args:
        name: ``"train"``, ``"val"`` or ``"test"``, which errors name.
        part: the user's value.

    Raises:
        UserError: if it is empty, its tensors differ in length, or it cannot be indexed.
    """
    if is_ready(part):
        return part  # type: ignore[no-any-return]
    if isinstance(part, list) and part and all(isinstance(one, Tensor) for one in part):
        part = tuple(part)
    if isinstance(part, Tensor):
        raise UserError(
            f"Data({name}=...): received a single tensor; give a tuple (x, y), or (x,) where there is no target"
        )
    if isinstance(part, tuple):
        if not part or not all(isinstance(one, Tensor) and one.ndim for one in part):
            raise UserError(
                f"Data({name}=...): a tuple must hold tensors whose first dimension runs over samples; received"
                f" {', '.join('a number' if isinstance(one, Tensor) else type(one).__name__ for one in part) or 'none'}"
            )
        lengths = [len(one) for one in part]
        if len(set(lengths)) > 1:
            raise UserError(f"Data({name}=...): tensors must have the same first dimension; received {lengths}")
    elif isinstance(part, IterableDataset) or not (hasattr(part, "__getitem__") and hasattr(part, "__len__")):
        raise UserError(
            f"Data({name}=...): must be a tuple of tensors or a data set with __getitem__ and __len__; received"
            f" {type(part).__name__}, whose order cannot be keyed"
        )
    if length_of(part) == 0:
        raise UserError(f"Data({name}=...): has no samples; give at least one")
    checked: Part = part
    return checked
