"""Where the input, the target and the sample weights of a batch stand, by convention or as the user declares it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from framework.data.trees import fields_of, leaves_of
from framework.errors import UserError, brief, some

# by convention, in order of preference; "input" may also be all entries that are neither target nor weight
INPUTS = ("input", "inputs", "x", "image", "images", "img", "features")
TARGETS = ("target", "targets", "labels", "label", "y")
WEIGHTS = ("weight", "weights", "sample_weight", "sample_weights")
# networks that read these take several inputs, by name
_NAMED = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")
_CONVENTIONS = {"input": INPUTS, "target": TARGETS, "weight": WEIGHTS}
ORDER = ("input", "target", "weight")


def name_of(names: Iterable[Any], role: str) -> str | None:
    """Return the name under which keys or fields hold a part by convention, None if none does.

    Args:
        names: the names.
        role: ``"input"``, ``"target"`` or ``"weight"``.

    Example:
        >>> name_of(["image", "label"], "input"), name_of(["image", "label"], "target")
        ('image', 'label')
    """
    have = set(names)
    if role == "input" and "input" not in have and not have.isdisjoint(_NAMED):
        return None
    return next((name for name in _CONVENTIONS[role] if name in have), None)


def named_only(key: Any) -> bool:
    """Return whether networks that read an entry of this name take their inputs by name.

    Example:
        >>> named_only("input_ids"), named_only("picture")
        (True, False)
    """
    return key in _NAMED


def inputs_in(batch: Mapping[Any, Any]) -> list[Any]:
    """Return the keys of the tensors of a mapping that are neither target nor weight: a network's several inputs.

    Entries without a tensor, such as texts, are not among them.

    Example:
        >>> import torch
        >>> inputs_in({"input_ids": torch.zeros(1), "labels": torch.zeros(1), "text": ["a"]})
        ['input_ids']
    """
    other = {name_of(batch, "target"), name_of(batch, "weight")}
    return [
        key
        for key, value in batch.items()
        if key not in other and any(isinstance(one, Tensor) for one in leaves_of(value))
    ]


class Roles:
    """Names the parts of batches, or samples, whose parts do not stand where convention expects them.

    A part is a key of a mapping, the name of an attribute, or a position. A tuple of them gives a network several
    inputs by position, a mapping ``{parameter: key}`` by name.

    Args:
        input: the input, None for what convention finds.
        target: the target, None for what convention finds, or for no target.
        weight: the samples' weights, None for what convention finds, or for no weights.

    Example:
        >>> Roles(("left", "right"), "same")({"left": 1, "right": 2, "same": 0})
        {'input': (1, 2), 'target': 0}
    """

    def __init__(self, input: Any = None, target: Any = None, weight: Any = None) -> None:
        self._parts = {"input": input, "target": target, "weight": weight}
        for name, where in self._parts.items():
            several = isinstance(where, (tuple, list, Mapping))
            each = (where.values() if isinstance(where, Mapping) else where) if several else (where,)
            kinds = (str, int, tuple) if several else (str, int)  # a tuple alone stands for several
            if where is not None and (not all(type(one) in kinds for one in each) or (several and not where)):
                raise UserError(
                    f"Data({name}={brief(where)}): must be a key or position of a batch's part, a tuple of them, or a"
                    " mapping {parameter: key}"
                )

    def __bool__(self) -> bool:
        return any(where is not None for where in self._parts.values())

    def __call__(self, batch: Any) -> dict[str, Any]:
        """Return a batch, or a sample, as a mapping with ``"input"``, and ``"target"`` and ``"weight"`` if it has them.

        Raises:
            UserError: if it lacks a part that was declared.
        """
        found: dict[str, Any] = {}
        for name, where in self._parts.items():
            if where is None:
                where = _usual(batch, name)
                if where is None:
                    continue
            if isinstance(where, Mapping):
                found[name] = {parameter: _entry(batch, key, name) for parameter, key in where.items()}
            elif isinstance(where, (tuple, list)):
                found[name] = tuple(_entry(batch, key, name) for key in where)
            else:
                found[name] = _entry(batch, where, name)
        return found


def _usual(batch: Any, role: str) -> Any:
    """Return where a part that was not declared stands by convention, None if there is none."""
    if isinstance(batch, Mapping):
        name = name_of(batch, role)
        return {key: key for key in inputs_in(batch)} if name is None and role == "input" else name
    if names := fields_of(batch):
        return name_of(names, role)
    if isinstance(batch, (tuple, list)):
        place = ORDER.index(role)
        return place if role != "weight" and place < len(batch) else None
    return next((name for name in _CONVENTIONS[role] if hasattr(batch, name)), None)


def _entry(batch: Any, key: Any, role: str) -> Any:
    try:
        if isinstance(key, int) or isinstance(batch, Mapping):
            return batch[key]
        return getattr(batch, key)
    except (LookupError, TypeError, AttributeError) as error:
        if isinstance(batch, Mapping):
            have = f"a mapping with {some([brief(one) for one in batch])}"
        elif isinstance(batch, (tuple, list)) and not fields_of(batch):
            have = f"a {type(batch).__name__} of {len(batch)}"
        else:
            have = f"a {type(batch).__name__}" + (f" with {some(list(names))}" if (names := fields_of(batch)) else "")
        raise UserError(f"Data({role}=...): a batch has no part {brief(key)}; it is {have}") from error
