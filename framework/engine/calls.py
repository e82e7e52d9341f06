"""How a network is called with one or several inputs, and what its output holds: predictions, and losses of its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from framework.data.roles import TARGETS
from framework.data.trees import fields_of, items_of

_PREDICTIONS = ("prediction", "predictions", "logits", "out", "output", "outputs", "preds", "pred", "y_hat")
_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Call:
    """The arguments that a network's ``forward`` takes.

    A tuple of n inputs is given as n arguments if ``forward`` takes that many, and a mapping by name if its keys are
    names of parameters; otherwise they are one argument.

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
        self._required = sum(one.kind in _BY_POSITION and one.default is one.empty for one in parameters)
        self._any_number = inspect.Parameter.VAR_POSITIONAL in kinds
        self._any_name = inspect.Parameter.VAR_KEYWORD in kinds
        self.names = [one.name for one in parameters if one.kind in (*_BY_POSITION, inspect.Parameter.KEYWORD_ONLY)]

    def arguments(self, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the named arguments for an input."""
        if type(x) is tuple and len(x) > 1:
            if self._any_number or len(x) <= self._positions:
                return tuple(x), {}
        elif isinstance(x, Mapping) and x and all(isinstance(key, str) for key in x):
            known = [key in self.names for key in x]
            if all(known) or (self._any_name and (any(known) or not self.names)):
                return (), dict(x)
        return (x,), {}

    def with_target(self, x: Any, target: Any) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return the arguments for an input and a target, None if ``forward`` takes no target beside this input."""
        args, named = self.arguments(x)
        name = next((name for name in TARGETS if name in self.names[len(args) :]), None)
        if name is not None:
            return args, {**named, name: target}
        if self._any_number or (args and len(args) < self._positions and len(args) < max(self._required, 2)):
            return (*args, target), named
        return None

    def describe(self) -> str:
        """Return the names of the parameters, as text."""
        return ", ".join(self.names) or "no argument"


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
