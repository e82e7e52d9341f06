"""The parts of a batch: input, target, sample weights, and what else it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

from framework.data.roles import ORDER, inputs_in, name_of, named_only
from framework.data.trees import fields_of, items_of, leaves_of, map_leaves, rebuilt
from framework.errors import UserError, brief, tally


def input_of(batch: Any) -> Any:
    """Return a batch's input: first item of a tuple or list, an entry or field by its name, or the tensor itself.

    By convention a mapping's entry, or a field, is the input if it is called ``input``, ``x``, ``image`` and the like
    (:data:`framework.data.roles.INPUTS`); without one, all tensors of a mapping are the input that are neither target
    nor weight, such as ``input_ids`` and ``attention_mask``. A named tuple or dataclass without such a field is read by
    position, as a tuple is.
    """
    return batch if isinstance(batch, Tensor) else _part(batch, "input")


def target_of(batch: Any) -> Any:
    """Return a batch's target: second item of a tuple or list, or the entry or field with a usual name.

    Usual names are ``target``, ``label``, ``y`` and the like (:data:`framework.data.roles.TARGETS`).
    """
    return _part(batch, "target")


def weight_of(batch: Any) -> Tensor | None:
    """Return the weights of a batch's samples, ``(samples,)``: its third item, or an entry called so; None for none.

    Raises:
        UserError: if they are no tensor with one finite number of 0 or more per sample.
    """
    weight = third_of(batch)
    return None if weight is None else _checked_weight(weight, batch)


def third_of(batch: Any) -> Any:
    """Return what stands where a batch has its samples' weights, unchecked; None if nothing does."""
    kind = type(batch)
    if kind is tuple or kind is list:
        return batch[2] if len(batch) == 3 else None
    if isinstance(batch, Tensor):
        return None
    name = name_of(batch if isinstance(batch, Mapping) else fields_of(batch), "weight")
    if name is None:
        return None
    return batch[name] if isinstance(batch, Mapping) else getattr(batch, name)


def _checked_weight(weight: Any, batch: Any) -> Tensor:
    if isinstance(weight, Tensor) and weight.shape == (size_of(batch),) and not weight.is_complex():
        # on an accelerator, reading the answer would make every step synchronize
        if weight.device.type == "cpu" and not bool((right := (weight >= 0) & (weight < math.inf)).all()):
            row = int((~right).nonzero()[0])
            raise UserError(
                "the weights of a batch's samples must be finite numbers of 0 or more; that of row"
                f" {row} is {weight[row].item()}: correct the weights in the data"
            )
        return weight
    given = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else f"type {type(weight).__name__}"
    raise UserError(
        f"a batch's third part must be the weights of its samples, shape ({size_of(batch)},); this one has {given}:"
        " name the parts by Data(input=..., target=...), or override compute_loss in a subclass of Core"
    )


def has_target(batch: Any) -> bool:
    """Return whether a batch has a target by convention."""
    if isinstance(batch, Tensor):
        return False
    if isinstance(batch, Mapping):
        return name_of(batch, "target") is not None
    names = fields_of(batch)
    if isinstance(batch, (tuple, list)):
        return len(batch) > 1
    return name_of(names, "target") is not None if names else hasattr(batch, "target")


def _part(batch: Any, name: str) -> Any:
    try:
        # plain tuples first: isinstance with Mapping takes longer than the rest of this function
        if type(batch) is tuple or type(batch) is list:
            return batch[ORDER.index(name)]
        if not isinstance(batch, (tuple, list)) and isinstance(batch, Mapping):
            key = name_of(batch, name)
            if key is None and name == "input" and (keys := inputs_in(batch)):
                return batch[keys[0]] if _sole(keys) else {one: batch[one] for one in keys}
            return batch[name if key is None else key]
        place = _key(batch, name)
        return getattr(batch, place) if isinstance(place, str) else batch[place]
    except (LookupError, TypeError, AttributeError) as error:
        have = f"a mapping with {tally(map(brief, batch), 6)}" if isinstance(batch, Mapping) else type(batch).__name__
        raise UserError(
            f"a batch must be (input, target) or a mapping with 'input' and 'target'; this one is {have}, without"
            f" {name}: name its parts by Data(input=..., target=...), change Data(collate=...), or override"
            " compute_loss in a subclass of Core"
        ) from error


def _sole(keys: list[Any]) -> bool:
    """Return whether a single entry is the input itself; one that networks know by its name stays named."""
    return len(keys) == 1 and not named_only(keys[0])


def _key(batch: Any, name: str) -> str | int:
    """Return where a part stands in a batch that is no mapping: name of an attribute, or position."""
    names = fields_of(batch)
    if found := name_of(names, name):
        return found
    if not names and hasattr(batch, name):
        return name
    position = ORDER.index(name)
    return names[position] if names and not isinstance(batch, tuple) else position


def replace(batch: Any, **parts: Any) -> Any:
    """Return a shallow copy of the batch, of the same type, with its ``input`` or ``target`` replaced.

    Raises:
        UserError: if the batch's type cannot be made again with other content.
    """
    if isinstance(batch, Tensor):
        return parts.get("input", batch)
    if type(batch) is tuple:
        changed = list(batch)
        for name, value in parts.items():
            changed[ORDER.index(name)] = value
        return tuple(changed)
    if isinstance(batch, Mapping):
        entries: dict[Any, Any] = {}
        for name, value in parts.items():
            key = name_of(batch, name)
            if key is None and name == "input" and (keys := inputs_in(batch)):
                entries |= {keys[0]: value} if _sole(keys) else value
            else:
                entries[name if key is None else key] = value
        return {**batch, **entries} if type(batch) is dict else rebuilt(batch, entries)
    return rebuilt(batch, {_key(batch, name): value for name, value in parts.items()})


def map_rest(batch: Any, change: Callable[[Any], Any], whole: Collection[int] = ()) -> Any:
    """Return a batch with ``change`` applied to every leaf beside its input; see :func:`map_leaves`."""
    if isinstance(batch, Tensor):
        return batch
    if type(batch) is tuple and len(batch) == 2:
        target = map_leaves(batch[1], change, whole)
        return batch if target is batch[1] else (batch[0], target)
    if isinstance(batch, Mapping):
        key = name_of(batch, "input")
        inputs = [key] if key is not None else inputs_in(batch)
    else:
        place = _key(batch, "input")
        at = fields_of(batch).index(place) if isinstance(batch, tuple) and isinstance(place, str) else place
        inputs = [at]
    changed = {
        k: new for k, old in items_of(batch) if k not in inputs and (new := map_leaves(old, change, whole)) is not old
    }
    return rebuilt(batch, changed) if changed else batch


def rest_of(batch: Any, whole: Collection[int] = ()) -> list[Any]:
    """Return every leaf of a batch beside its input; see :func:`map_leaves`."""
    found: list[Any] = []

    def keep(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    map_rest(batch, keep, whole)
    return found


def size_of(batch: Any) -> int:
    """Return the number of samples in a batch: the length of the first tensor in its input.

    Raises:
        UserError: if there is no tensor, nor anything else with a length.
    """
    if not isinstance(batch, (tuple, list)) and isinstance(batch, Mapping) and name_of(batch, "input") is None:
        first: Any = {key: batch[key] for key in inputs_in(batch)} or batch
    else:
        first = input_of(batch)
    if isinstance(first, Tensor) and first.ndim:
        return len(first)
    leaves = leaves_of(first)
    tensor = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), None)
    if tensor is not None:
        return len(tensor)
    try:
        if any(isinstance(leaf, str) for leaf in leaves):  # each has a length, but none of samples
            raise TypeError
        return len(first if isinstance(first, list) else leaves[0])
    except (TypeError, IndexError) as error:
        raise UserError(
            f"a batch must hold a tensor with one row per sample; this one is {type(batch).__name__} without one:"
            " change Data(collate=...), or override count in a subclass of Core"
        ) from error
