"""Forward hooks by which plugins read and change the outputs of layers."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from framework.errors import UserError, some
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
        # layers without an output, or whose output no gradient has reached, in the first step; None after it
        self.silent: set[str] | None = set()
        self.unread: set[str] = set()

    def watch(self, plugin: Plugin, patterns: Patterns) -> dict[str, nn.Module]:
        """Register a plugin at the layers that match, and return these layers by name."""
        layers = select_layers(self._model, patterns, who=plugin.describe())
        for name, layer in layers.items():
            if name not in self._watchers:
                self._watchers[name] = []
                if self.silent is not None:
                    self.silent.add(name)
                layer.register_forward_hook(_Hook(self, name, self._watchers[name], self._step))
            if plugin not in self._watchers[name]:
                self._watchers[name].append(plugin)
        return layers

    def end_first_step(self, *, compiled: bool) -> None:
        """Warn of layers that plugins chose in vain: those without an output so far, or with one that nobody reads.

        Args:
            compiled: whether the network is compiled, in which nobody can tell.
        """
        silent, self.silent = self.silent or set(), None
        if compiled:
            return
        for names, what in (
            (silent, "gave no output"),
            (self.unread - silent, "gave an output that the loss is not of"),
        ):
            plugins = {plugin.describe(): None for name in names for plugin in self._watchers[name]}
            if names:
                warnings.warn(
                    f"{' and '.join(plugins)}: {some(sorted(names))} {what} in the first step, where the plugin so far"
                    " has no effect: a network may use a layer's weight without calling the layer; choose another",
                    stacklevel=2,
                )

    @staticmethod
    def owns(hook: Any) -> bool:
        """Return whether a forward hook of a layer is of this class, for ``transform_activation``."""
        return isinstance(hook, _Hook)

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
        observers = self._observers
        if not torch.compiler.is_compiling() and observers.silent is not None:
            observers.silent.discard(self._layer)
            if x.requires_grad:
                observers.unread.add(self._layer)
                x.register_hook(self._read)  # type: ignore[no-untyped-call]
        return x

    def _read(self, gradient: Tensor) -> None:
        self._observers.unread.discard(self._layer)

    def __reduce__(self) -> Any:
        return _nobody, ()


def _nobody() -> Any:
    return _pass


def _pass(module: nn.Module, args: Any, output: Any) -> None:
    """Leave a layer's output unchanged."""
