"""Selection of layers and weights by patterns over their names and class names."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from typing import Union

from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

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

    A layer that is used under several names is listed by its first name and matched by all of them.

    Args:
        model: the user's network.
        patterns: shell patterns such as ``"encoder.*"``, ``"ReLU"`` or ``"1,3"``.
        who: what the error names, such as ``"HiddenNoise(layers='RelU')"``.

    Raises:
        UserError: if a pattern matches no layer, or no pattern is given; the message lists the layers.
    """
    layers: dict[str, nn.Module] = {}
    known_as: dict[str, set[str]] = {}
    names: dict[nn.Module, str] = {}
    for full, layer in model.named_modules(remove_duplicate=False):
        if full and layer is not model:
            name = names.setdefault(layer, full)
            layers[name] = layer
            known_as.setdefault(name, set()).update((full, type(layer).__name__))
    chosen: set[str] = set()
    for pattern in _some(patterns, who):
        found = _matching(known_as, pattern)
        if not found:
            known = [*set[str]().union(*known_as.values())]
            raise UserError(
                f"{who}: pattern {pattern!r} matches no layer of {type(model).__name__}"
                f"{did_you_mean(pattern, sorted(known))}"
            )
        chosen |= found
    return {name: layer for name, layer in layers.items() if name in chosen}


def _matching(known_as: Mapping[str, set[str]], pattern: str) -> set[str]:
    return {name for name, texts in known_as.items() if any(fnmatch.fnmatchcase(t, pattern) for t in texts)}


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return the number of a network's parameters and of its trainable ones; tied parameters count once.

    Example:
        >>> parameter_counts(nn.Linear(3, 2))
        (8, 8)
    """
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def select_weights(
    model: nn.Module, patterns: Patterns = "*", *, who: str, biases: bool = False, frozen: bool = False
) -> dict[str, nn.Parameter]:
    """Return the trainable weights that match one of the patterns, by qualified name; shared ones are listed once.

    By default only weights are selected: parameters of at least two dimensions that are no gain of a normalization and
    are not called bias. A pattern is matched against the parameter's qualified name, the name of its layer and the
    class name of its layer. A weight of several names, tied or in a shared layer, is listed by its first name and
    matched by all of them.

    Args:
        model: the user's network.
        patterns: shell patterns such as ``"*"``, ``"lstm.*"``, ``"Linear"``, ``"*.weight_hh_*"``.
        who: what the error names.
        biases: select biases and norm gains as well.
        frozen: return frozen weights that match as well, for a selection that follows what is frozen and unfrozen.

    Raises:
        UserError: if a pattern matches no trainable weight, or no pattern is given; the message lists the weights.
    """
    weights, known_as = _named(model, biases=biases)
    trainable = {name for name, weight in weights.items() if weight.requires_grad}
    chosen: set[str] = set()
    for pattern in _some(patterns, who):
        found = _matching(known_as, pattern)
        if not found & trainable:
            hint = did_you_mean(pattern, [name for name in weights if name in trainable])
            raise UserError(f"{who}: pattern {pattern!r} matches no weight of {type(model).__name__}{hint}")
        chosen |= found
    return {name: w for name, w in weights.items() if name in chosen and (frozen or name in trainable)}


def select_parameters(model: nn.Module, patterns: Patterns, *, who: str) -> dict[str, nn.Parameter]:
    """Return all parameters, frozen ones too, that match one of the patterns as in :func:`select_weights`.

    Args:
        model: the user's network.
        patterns: shell patterns such as ``"head.*"``.
        who: what the error names.

    Raises:
        UserError: if a pattern matches no parameter, or no pattern is given.
    """
    parameters, known_as = _named(model, biases=True)
    chosen: set[str] = set()
    for pattern in _some(patterns, who):
        found = _matching(known_as, pattern)
        if not found:
            hint = did_you_mean(pattern, list(parameters))
            raise UserError(f"{who}: pattern {pattern!r} matches no parameter of {type(model).__name__}{hint}")
        chosen |= found
    return {name: parameter for name, parameter in parameters.items() if name in chosen}


def _named(model: nn.Module, *, biases: bool) -> tuple[dict[str, nn.Parameter], dict[str, set[str]]]:
    """Return weights, or all parameters, by their first name, with the texts that patterns are matched against."""
    weights: dict[str, nn.Parameter] = {}
    known_as: dict[str, set[str]] = {}
    names: dict[nn.Parameter, str] = {}
    for prefix, layer in model.named_modules(remove_duplicate=False):
        for short, parameter in layer.named_parameters(recurse=False):
            if biases or is_weight(layer, short, parameter):
                full = f"{prefix}.{short}" if prefix else short
                name = names.setdefault(parameter, full)
                weights[name] = parameter
                known_as.setdefault(name, set()).update((full, prefix, type(layer).__name__))
    return weights, known_as


def _some(patterns: Patterns, who: str) -> tuple[str, ...]:
    given = as_patterns(patterns)
    if not given:
        raise UserError(f"{who}: no pattern is given; '*' matches all")
    return given


def is_weight(layer: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a weight: at least two dimensions, no gain of a norm, no ``bias`` in its name."""
    return parameter.ndim >= 2 and not is_norm(layer) and "bias" not in name and not _is_length(layer, name)


def _is_length(layer: nn.Module, name: str) -> bool:
    """Return whether a parameter holds the lengths g of weight normalization, g v/|v|, in torch's new or old form."""
    if isinstance(layer, ParametrizationList):
        return name == "original0" and isinstance(layer[0], parametrizations._WeightNorm)
    hooks = layer._forward_pre_hooks.values()
    return any(isinstance(hook, WeightNorm) and name == f"{hook.name}_g" for hook in hooks)


def is_norm(layer: nn.Module) -> bool:
    """Return whether a layer is a normalization layer."""
    return isinstance(layer, _NORMS)


def normalized(model: nn.Module) -> set[Tensor]:
    """Return the parameters of layers that precede a norm layer directly in an ``nn.Sequential``.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
        >>> normalized(model) == {model[0].weight, model[0].bias}
        True
    """
    pairs = [pair for one in model.modules() if isinstance(one, nn.Sequential) for pair in itertools.pairwise(one)]
    return {weight for layer, after in pairs if is_norm(after) for weight in layer.parameters(recurse=False)}
