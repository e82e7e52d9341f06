"""The modes, training or evaluation, that a network's layers train in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


class LayerModes:
    """Remembers which layers train, since frozen ones, such as normalization layers, stay in evaluation mode.

    Args:
        model: the network, with what is around it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: list[tuple[nn.Module, bool]] = []

    def remember(self) -> None:
        """Remember the present modes as those of training; called before the network is switched to evaluation."""
        self._kept = self.present()

    def present(self) -> list[tuple[nn.Module, bool]]:
        """Return each layer with its present mode."""
        return [(layer, layer.training) for layer in self._model.modules()]

    @contextmanager
    def as_in_training(self) -> Iterator[None]:
        """Return a context in which every layer has the mode that it trains in."""
        present = self.present()
        put(self._kept)
        try:
            yield
        finally:
            put(present)


def put(modes: list[tuple[nn.Module, bool]]) -> None:
    """Give each layer a mode, without calling ``train()``, which a user may have overridden."""
    for layer, mode in modes:
        layer.training = mode
