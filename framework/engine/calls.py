"""How a network is called with one or several inputs, and what its output holds: predictions, and losses of its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from framework.data.roles import TARGETS
from framework.data.trees import fields_of, items_of
from framework.errors import UserError, brief, tally

_PREDICTIONS = ("prediction", "predictions", "logits", "out", "output", "outputs", "preds", "pred", "y_hat")
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Call:
    """The arguments that a network's ``forward`` takes.

    A tuple of n inputs is given as n arguments if ``forward`` takes that many, and a mapping by name if its keys are
    names of parameters; otherwise they are one argument, unless ``forward`` requires several.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        try:
            parameters = list(inspect.signature(network.forward).parameters.values())
        except (TypeError, ValueError):  # a scripted network may have no signature
            parameters = []
        kinds = {one.kind for one in parameters}
        self._positions = sum(one.kind in _BY_POSITION for one in parameters)
        needed = [one.name for one in parameters if one.kind in _BY_POSITION and one.default is one.empty]
        self._required = tuple(needed)
        self._who = type(network).__name__
        self._named: dict[Any, bool] = {}
        self._any_number = inspect.Parameter.VAR_POSITIONAL in kinds
        self._any_name = inspect.Parameter.VAR_KEYWORD in kinds
        self.names = [one.name for one in parameters if one.kind in (*_BY_POSITION, inspect.Parameter.KEYWORD_ONLY)]

    def arguments(self, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the named arguments for an input.

        Raises:
            UserError: if ``forward`` can take the input in no way.
        """
        return self._bound(x, self._required)

    def with_target(self, x: Any, target: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the arguments for an input and a target, None if ``forward`` takes no target beside this input.

        Raises:
            UserError: if ``forward`` can take the input in no way.
        """
        named_so = any(name in TARGETS for name in self.names)
        inputs = tuple(name for name in self._required if name not in TARGETS) if named_so else self._required[:-1]
        args, named = self._bound(x, inputs)
        name = next((name for name in TARGETS if name in self.names[len(args) :]), None)
        if name is not None:
            return args, {**named, name: target}
        if self._any_number or (args and len(args) < self._positions and len(args) < max(len(self._required), 2)):
            return (*args, target), named
        return None

    def _bound(self, x: Any, required: tuple[str, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if type(x) is tuple and len(x) > 1:
            if self._any_number or len(required) <= len(x) <= self._positions:
                return tuple(x), {}
            if len(required) > 1:
                raise UserError(
                    f"{self._who}.forward takes {self.describe()}, and the batch gives {len(x)} inputs; name them by"
                    " Data(input={parameter: key})"
                )
        elif isinstance(x, Mapping) and x:
            case = (tuple(x), required)
            if case not in self._named:
                self._named[case] = self._by_name(*case)
            if self._named[case]:
                return (), dict(x)
        return (x,), {}

    def _by_name(self, keys: tuple[Any, ...], required: tuple[str, ...]) -> bool:
        """Return whether a mapping with such keys is given by name, False if it is one argument."""
        known = [key for key in keys if isinstance(key, str) and key in self.names]
        if all(isinstance(key, str) for key in keys):
            others = self._any_name and bool(known or not self.names)
            if (len(known) == len(keys) or others) and set(required) <= set(keys):
                return True
        meant = len(self.names) > 1 and bool(known) and set(required) <= set(known)
        if len(required) < 2 and not meant:
            return False  # the mapping itself may be what forward takes
        unknown = [brief(key) for key in keys if key not in known and not (self._any_name and isinstance(key, str))]
        missing = [name for name in required if name not in known]
        wrong = f"no parameter {', '.join(unknown[:3])}" if unknown else f"nothing for {', '.join(missing)}"
        raise UserError(
            f"{self._who}.forward takes {self.describe()}, and the batch gives {tally(map(brief, keys), 6)}: {wrong};"
            " name the inputs by Data(input={parameter: key})"
        )

    def describe(self) -> str:
        """Return the names of the parameters, as text."""
        return ", ".join(self.names) or "no argument"


def in_words(value: Any) -> str:
    """Return what a value is, as text: its kind, and what it holds.

    Example:
        >>> in_words((1, 2)), in_words({"a": 1}), in_words(None)
        ('a tuple of 2 (int (2 times))', "a dict with 'a'", 'None')
    """
    if value is None or isinstance(value, Tensor):
        return brief(value)
    kind = type(value).__name__
    if names := [key for key, _ in items_of_fields(value)] if isinstance(value, Mapping) else list(fields_of(value)):
        return f"a {kind} with {tally(map(brief, names), 6)}"
    if isinstance(value, (tuple, list)):
        return f"a {kind} of {len(value)} ({tally(type(one).__name__ for one in value)})"
    return f"a {kind}"


def prediction_of(output: Any) -> Any:
    """Return the prediction within a network's output: the entry called so, or the only tensor that is no loss.

    Args:
        output: a tensor, or a mapping, dataclass or named tuple, such as ``ModelOutput``; anything else is returned.

    Example:
        >>> import torch
        >>> prediction_of({"loss": torch.tensor(0.5), "logits": torch.ones(2)})
        tensor([1., 1.])
    """
    if isinstance(output, Tensor) or not (isinstance(output, Mapping) or fields_of(output)):
        return output
    entries = {key: value for key, value in items_of_fields(output) if value is not None}
    for name in _PREDICTIONS:
        if name in entries:
            return entries[name]
    rest = [value for key, value in entries.items() if "loss" not in str(key) and isinstance(value, Tensor)]
    return rest[0] if len(rest) == 1 else output


def losses_of(output: Any) -> dict[str, Tensor]:
    """Return the losses that a network's output holds, by name: scalars that require no further reduction.

    Of a mapping or an object with fields these are the entry ``"loss"`` and all scalars; of a tuple its only scalar;
    a scalar is the loss itself.

    Example:
        >>> import torch
        >>> losses_of((torch.ones(2, 3), torch.tensor(0.5)))
        {'loss': tensor(0.5000)}
    """
    if isinstance(output, Tensor):
        return {"loss": output} if _is_loss(output) else {}
    if isinstance(output, Mapping) or fields_of(output):
        return {str(key): value for key, value in items_of_fields(output) if _is_loss(value)}
    if isinstance(output, Sequence) and not isinstance(output, str):
        scalars = [one for one in output if _is_loss(one)]
        return {"loss": scalars[0]} if len(scalars) == 1 else {}
    return {}


def items_of_fields(output: Any) -> list[tuple[Any, Any]]:
    """Return the entries of a mapping, or the fields of a named tuple or dataclass, by name."""
    if isinstance(output, Mapping):
        return list(items_of(output))
    return [(name, getattr(output, name)) for name in fields_of(output)]


def _is_loss(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.ndim <= 1 and value.is_floating_point()
