"""Parts of the data: tensors, a map-style data set, or what already yields batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from framework.data.trees import leaves_of, map_leaves
from framework.errors import UserError, tally

Part = tuple[Tensor, ...] | Dataset[Any]


class Columns(Dataset[Any]):
    """Tensors in nested containers, such as several inputs by name, whose first dimensions run over samples.

    Args:
        tree: tuples, lists, mappings and dataclasses of tensors.

    Example:
        >>> part = Columns({"left": torch.arange(3), "right": torch.arange(3)})
        >>> len(part), part[2], part.take(torch.tensor([0, 1]))["left"]
        (3, {'left': tensor(2), 'right': tensor(2)}, tensor([0, 1]))
    """

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self._length = len(leaves_of(tree)[0])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return map_leaves(self.tree, lambda leaf: leaf[index])

    def take(self, indices: Tensor) -> Any:
        """Return the samples at some indices as a batch."""
        return map_leaves(self.tree, lambda leaf: leaf.index_select(0, indices))

    def between(self, low: int, high: int) -> Any:
        """Return the samples from ``low`` up to ``high`` as a batch of views."""
        return map_leaves(self.tree, lambda leaf: leaf[low:high])


def is_ready(part: Any) -> bool:
    """Return whether a part already yields batches: a ``DataLoader``, or an iterable that cannot be indexed.

    Example:
        >>> is_ready(DataLoader([1.0])), is_ready((torch.zeros(1),)), is_ready(iter([1]))
        (True, False, True)
    """
    if isinstance(part, (DataLoader, IterableDataset, Dataset)):
        return isinstance(part, DataLoader)
    return hasattr(part, "__iter__") and not hasattr(part, "__getitem__") and not isinstance(part, Tensor)


def _kind(part: Any) -> str:
    return "a tuple" if isinstance(part, tuple) else f"a {type(part).__name__}"


def length_of(part: Part) -> int:
    """Return the number of samples of a part."""
    return len(part[0]) if isinstance(part, tuple) else len(part)  # type: ignore[arg-type]


def is_held(part: Any) -> bool:
    """Return whether a part consists of tensors in memory, of which batches are taken by indexing."""
    return isinstance(part, (tuple, Columns))


def as_dataset(part: Part) -> Dataset[Any]:
    """Return a part as a map-style data set."""
    return torch.utils.data.TensorDataset(*part) if isinstance(part, tuple) else part


def checked(name: str, part: Any, *, formats: bool = True) -> Part:
    """Check that a part can be cut into batches and return it; a list of tensors becomes a tuple.

    Args:
        name: ``"train"``, ``"val"`` or ``"test"``, which errors name.
        part: the user's value.
        formats: let a data set of Hugging Face's return tensors, unless it has a format already.

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
    if isinstance(part, (tuple, Mapping)) or dataclasses.is_dataclass(part):
        leaves = leaves_of(part)
        if not leaves or not all(isinstance(one, Tensor) and one.ndim for one in leaves):
            words = tally(
                "a tensor without dimensions" if isinstance(one, Tensor) else type(one).__name__
                for one in leaves
                if not isinstance(one, Tensor) or not one.ndim
            )
            raise UserError(
                f"Data({name}=...): {_kind(part)} must hold tensors whose first dimension runs over samples; received"
                f" {words or 'none'}"
            )
        if len({len(one) for one in leaves}) > 1:
            lengths = tally(str(len(one)) for one in leaves)
            raise UserError(f"Data({name}=...): tensors must have the same first dimension; received {lengths}")
        if type(part) is not tuple or not all(isinstance(one, Tensor) for one in part):
            part = Columns(part)
    elif not (hasattr(part, "__getitem__") and hasattr(part, "__len__")):
        raise UserError(
            f"Data({name}=...): must be tensors, a data set with __getitem__ and __len__, an IterableDataset, a"
            f" DataLoader or another iterable of batches, or a LightningDataModule; received {type(part).__name__}"
        )
    elif formats and hasattr(part, "with_format") and getattr(part, "format", {}).get("type", "") is None:
        part = part.with_format("torch")  # its samples would be lists, which default_collate takes apart
    if length_of(part) == 0:
        raise UserError(f"Data({name}=...): has no samples; give at least one")
    checked: Part = part
    return checked


def subset(part: Part, indices: Any) -> Part:
    """Return some samples of a part as a part of the same kind.

    Args:
        part: tensors or a map-style data set.
        indices: indices of the samples, ``(n,)``.
    """
    chosen = torch.as_tensor(indices)
    if isinstance(part, tuple):
        return tuple(one.index_select(0, chosen) for one in part)
    return Columns(part.take(chosen)) if isinstance(part, Columns) else torch.utils.data.Subset(part, chosen.tolist())
