"""Selection of layers and weights by patterns over their names and class names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Union

from torch import nn

from framework.errors import UserError, did_you_mean

Patterns = Union[str, Sequence[str]]

_NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


def as_patterns(patterns: Patterns) -> tuple[str, ...]:
    """Return patterns as a tuple; a string may hold several, separated by commas."""
    if isinstance(patterns, str):
        return tuple(part.strip() for part in patterns.split(",") if part.strip())
    return tuple(patterns)


def select_layers(model: nn.Module, patterns: Patterns, *, who: str) -> dict[str, nn.Module]:
    """Return the layers whose qualified name or class name matches one of the patterns, in the model's order.

    Args:
        model: the user's network.
        patterns: shell patterns such as ``"encoder.*"``, ``"ReLU"`` or ``"1,3"``.
        who: what the error names, such as ``"HiddenNoise(layers='RelU')"``.

    Raises:
        UserError: if a pattern matches no layer, or no pattern is given; the message lists the layers.
    """
    layers = {name: layer for name, layer in model.named_modules() if name}
    chosen: set[str] = set()
    for pattern in _some(patterns, who):
        found = {
            name
            for name, layer in layers.items()
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(type(layer).__name__, pattern)
        }
        if not found:
            known = [*layers, *(type(layer).__name__ for layer in layers.values())]
            raise UserError(
                f"{who}: pattern {pattern!r} matches no layer of {type(model).__name__}{did_you_mean(pattern, known)}"
            )
        chosen |= found
    return {name: layer for name, layer in layers.items() if name in chosen}


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return the number of a network's parameters and of its trainable ones; tied parameters count once.

    Example:
        >>> parameter_counts(nn.Linear(3, 2))
        (8, 8)
    """
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def select_weights(
    model: nn.Module, patterns: Patterns = "*", *, who: str, biases: bool = False
) -> dict[str, nn.Parameter]:
    """Return the trainable weights that match one of the patterns, by qualified name; tied ones are listed once.

    By default only weights are selected: parameters of at least two dimensions that belong to no normalization layer
    and are not called bias. A pattern is matched against the parameter's qualified name, the name of its layer and the
    class name of its layer.

    Args:
        model: the user's network.
        patterns: shell patterns such as ``"*"``, ``"lstm.*"``, ``"Linear"``, ``"*.weight_hh_*"``.
        who: what the error names.
        biases: select biases and norm gains as well.

    Raises:
        UserError: if a pattern matches no weight, or no pattern is given; the message lists the weights.
    """
    weights: dict[str, nn.Parameter] = {}
    known_as: dict[str, set[str]] = {}
    names: dict[nn.Parameter, str] = {}
    for prefix, layer in model.named_modules():
        for short, parameter in layer.named_parameters(recurse=False):
            if parameter.requires_grad and (biases or is_weight(layer, short, parameter)):
                full = f"{prefix}.{short}" if prefix else short
                name = names.setdefault(parameter, full)  # a tied weight is listed by its first name and matched by all
                weights[name] = parameter
                known_as.setdefault(name, set()).update((full, prefix, type(layer).__name__))
    chosen: set[str] = set()
    for pattern in _some(patterns, who):
        found = {name for name, texts in known_as.items() if any(fnmatch.fnmatchcase(t, pattern) for t in texts)}
        if not found:
            hint = did_you_mean(pattern, weights)
            raise UserError(f"{who}: pattern {pattern!r} matches no weight of {type(model).__name__}{hint}")
        chosen |= found
    return {name: weight for name, weight in weights.items() if name in chosen}


def _some(patterns: Patterns, who: str) -> tuple[str, ...]:
    given = as_patterns(patterns)
    if not given:
        raise UserError(f"{who}: no pattern is given; '*' matches all")
    return given


def is_weight(layer: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a weight: at least two dimensions, no norm layer, no ``bias`` in its name."""
    return parameter.ndim >= 2 and not is_norm(layer) and "bias" not in name


def is_norm(layer: nn.Module) -> bool:
    """Return whether a layer is a normalization layer."""
    return isinstance(layer, _NORMS)
