"""Forward hooks by which plugins read and change the outputs of layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from framework.errors import UserError
from framework.ops.patterns import Patterns, select_layers
from framework.plugin.plugin import Plugin
from framework.plugin.step import Step


class Observers:
    """One forward hook per layer that calls the plugins' ``transform_activation`` in order of registration.

    The hooks are registered before compile: one registered after the first compiled call never fires.

    Args:
        model: the network.
        step: the current step, passed to the plugins.
    """

    def __init__(self, model: nn.Module, step: Step) -> None:
        self.live = False
        self._model = model
        self._step = step
        self._watchers: dict[str, list[Plugin]] = {}

    def watch(self, plugin: Plugin, patterns: Patterns) -> dict[str, nn.Module]:
        """Register a plugin at the layers that match, and return these layers by name."""
        layers = select_layers(self._model, patterns, who=plugin.describe())
        for name, layer in layers.items():
            if name not in self._watchers:
                self._watchers[name] = []
                layer.register_forward_hook(_Hook(self, name, self._watchers[name], self._step))
            if plugin not in self._watchers[name]:
                self._watchers[name].append(plugin)
        return layers

    def of(self, layer: str) -> list[Plugin]:
        """Return the plugins registered at a layer, in the order in which they are called."""
        return self._watchers.get(layer, [])


class _Hook:
    """A layer's forward hook; in a copy of the layer it does nothing."""

    def __init__(self, observers: Observers, layer: str, watchers: list[Plugin], step: Step) -> None:
        self._observers, self._layer, self._watchers, self._step = observers, layer, watchers, step

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if not self._observers.live:
            return None
        if isinstance(output, Tensor):
            return self._fold(output)
        if isinstance(output, PackedSequence):
            return PackedSequence(self._fold(output.data), *output[1:])
        if isinstance(output, tuple) and isinstance(output[0], PackedSequence):
            return (PackedSequence(self._fold(output[0].data), *output[0][1:]), *output[1:])
        if isinstance(output, tuple) and isinstance(output[0], Tensor):
            return (self._fold(output[0]), *output[1:])
        raise UserError(
            f"layer {self._layer!r} returns a {type(output).__name__}, in which plugins cannot find the activation;"
            " choose a layer that returns a tensor, or a tuple that begins with one"
        )

    def _fold(self, x: Tensor) -> Tensor:
        for plugin in self._watchers:
            x = plugin.transform_activation(x, self._layer, self._step)
        return x

    def __reduce__(self) -> Any:
        return _nobody, ()


def _nobody() -> Any:
    return _pass


def _pass(module: nn.Module, args: Any, output: Any) -> None:
    """Leave a layer's output unchanged."""
