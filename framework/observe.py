"""Layers whose outputs plugins see and change."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from framework.patterns import Patterns, select_layers
from framework.plugin import Plugin
from framework.step import Step


class Observers:
    """One forward hook a layer that folds the plugins' ``transform_activation`` in the order of the recipe.

    The hooks are registered before compile: one registered after the first compiled call never fires.

    Args:
        model: the network.
        step: the step at hand, handed on to the plugins.
    """

    def __init__(self, model: nn.Module, step: Step) -> None:
        self.live = False
        self._model = model
        self._step = step
        self._watchers: dict[str, list[Plugin]] = {}

    def watch(self, plugin: Plugin, patterns: Patterns) -> dict[str, nn.Module]:
        """Let a plugin see the outputs of the layers that match and return these layers by name."""
        layers = select_layers(self._model, patterns, who=plugin.describe())
        for name, layer in layers.items():
            if name not in self._watchers:
                self._watchers[name] = []
                layer.register_forward_hook(self._hook(name))
            self._watchers[name].append(plugin)
        return layers

    def _hook(self, layer: str) -> Any:
        watchers = self._watchers[layer]

        def fold(x: Tensor) -> Tensor:
            for plugin in watchers:
                x = plugin.transform_activation(x, layer, self._step)
            return x

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if not self.live:
                return None
            if isinstance(output, Tensor):
                return fold(output)
            first, *rest = output
            if isinstance(output, PackedSequence):
                return PackedSequence(fold(first), *rest)
            if isinstance(first, PackedSequence):
                return (PackedSequence(fold(first.data), *first[1:]), *rest)
            return (fold(first), *rest)

        return hook
