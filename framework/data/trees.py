"""Nested containers of any type: their leaves, and copies of the same type with some entries replaced."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

from torch import Tensor

from framework.errors import UserError


def fields_of(container: Any) -> tuple[str, ...]:
    """Return the names of the fields of a named tuple or dataclass, none for anything else."""
    if isinstance(container, tuple):
        return tuple(getattr(container, "_fields", ()))
    return tuple(f.name for f in dataclasses.fields(container)) if dataclasses.is_dataclass(container) else ()


def items_of(container: Any) -> Iterable[tuple[Any, Any]]:
    """Return the keys of a container, as :func:`rebuilt` takes them, with what it holds there.

    Raises:
        UserError: if it is no mapping, sequence, dataclass or object with attributes.
    """
    if isinstance(container, Mapping):
        return list(container.items())
    if isinstance(container, Sequence):
        return enumerate(container)
    names = fields_of(container) or tuple(getattr(container, "__dict__", ()))
    return [(name, getattr(container, name)) for name in names]


def has_entry(container: Any, name: str) -> bool:
    """Return whether a mapping has a key, or a named tuple or dataclass a field."""
    return name in container if isinstance(container, Mapping) else name in fields_of(container)


def entry(container: Any, name: str) -> Any:
    """Return the entry of a mapping, or the field of a named tuple or dataclass."""
    return container[name] if isinstance(container, Mapping) else getattr(container, name)


def rebuilt(container: Any, parts: Mapping[Any, Any]) -> Any:
    """Return a shallow copy of a container, of the same type, with some entries replaced.

    Tuples and lists (named ones and subclasses too), mappings, other sequences, dataclasses and other objects are
    copied with all that they hold besides; the container itself never changes.

    Args:
        container: what is copied.
        parts: new values by key of a mapping, position in a sequence, or name of an attribute.

    Raises:
        UserError: if the container's type has no way to be made again.

    Example:
        >>> rebuilt([1, 2, 3], {1: "b"}), rebuilt({"a": 1}, {"b": 2})
        ([1, 'b', 3], {'a': 1, 'b': 2})
    """
    kind = type(container)
    if isinstance(container, tuple):
        fields = tuple(getattr(container, "_fields", ()))
        places = {fields.index(key) if isinstance(key, str) else key: value for key, value in parts.items()}
        made = tuple.__new__(kind, [places.get(index, item) for index, item in enumerate(container)])
        if kind is not tuple and hasattr(container, "__dict__"):
            made.__dict__.update(container.__dict__)
        return made
    if isinstance(container, (list, dict)) or _copies_itself(container):
        made = container.copy() if not isinstance(container, (list, dict)) else copy.copy(container)
        for key, value in parts.items():
            made[key] = value
        return made
    try:
        if isinstance(container, Mapping):
            return kind({**container, **parts})
        if isinstance(container, Sequence):
            return kind([parts.get(index, item) for index, item in enumerate(container)])
    except Exception as error:
        content = "a mapping" if isinstance(container, Mapping) else "a list"
        raise UserError(
            f"a batch of type {kind.__name__} cannot be made again with a changed part: {kind.__name__}({content})"
            f" raises {type(error).__name__}; give it such a constructor or a method copy(), or change"
            " Data(collate=...)"
        ) from error
    made = copy.copy(container)  # which runs no __init__
    for key, value in parts.items():
        object.__setattr__(made, key, value)  # frozen dataclasses too
    return made


def _copies_itself(container: Any) -> bool:
    """Return whether a mutable container has a method ``copy`` whose copies are of the same type and their own."""
    mutable = isinstance(container, (MutableMapping, MutableSequence)) and callable(getattr(container, "copy", None))
    return mutable and type(container.copy()) is type(container)


def map_leaves(tree: Any, change: Callable[[Any], Any], whole: Collection[int] = ()) -> Any:
    """Return nested tuples, lists, mappings and dataclasses with ``change`` applied to all that they hold.

    Containers keep their type; those in which nothing changed are returned as they are.

    Args:
        tree: a container, or anything else, which is a leaf itself.
        change: called with each leaf.
        whole: ids of containers that are leaves.

    Example:
        >>> map_leaves({"boxes": (1, [2])}, lambda leaf: leaf + 1)
        {'boxes': (2, [3])}
    """
    if isinstance(tree, (Tensor, str, int, float)) or id(tree) in whole:  # most trees are one tensor
        return change(tree)
    if not isinstance(tree, (tuple, list, Mapping)) and (not dataclasses.is_dataclass(tree) or isinstance(tree, type)):
        return change(tree)
    changed = {key: new for key, old in items_of(tree) if (new := map_leaves(old, change, whole)) is not old}
    return rebuilt(tree, changed) if changed else tree


def leaves_of(tree: Any) -> list[Any]:
    """Return the leaves of nested tuples, lists, mappings and dataclasses.

    Example:
        >>> leaves_of({"boxes": (1, [2])})
        [1, 2]
    """
    found: list[Any] = []

    def keep(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    map_leaves(tree, keep)
    return found
