"""How plugins get Lightning's notices without costing where they don't listen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pytorch_lightning import Callback

from framework.plugin import Plugin

_NOTICES = tuple(name for name in vars(Callback) if name.startswith(("on_", "setup", "teardown")))


class Notices(Callback):
    """Stands for several plugins in the Trainer's list of callbacks.

    Lightning asks every callback for every notice of every batch, at some 3 microseconds each; this asks the plugins
    that listen. Their states are kept under their names.

    Args:
        plugins: plugins in the order in which they are told.
    """

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self._plugins = list(plugins)
        self._key = ",".join(plugin.name for plugin in plugins)
        for notice in _NOTICES:
            calls = [getattr(p, notice) for p in plugins if getattr(type(p), notice) is not getattr(Callback, notice)]
            if calls:
                setattr(self, notice, _all(calls))

    @property
    def state_key(self) -> str:
        """The key in checkpoints: the plugins' names."""
        return f"plugins: {self._key}"

    def state_dict(self) -> dict[str, Any]:
        """Return the plugins' states by name."""
        return {plugin.name: state for plugin in self._plugins if (state := plugin.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the plugins their states."""
        for plugin in self._plugins:
            if plugin.name in state_dict:
                plugin.load_state_dict(state_dict[plugin.name])


def _all(calls: list[Callable[..., Any]]) -> Callable[..., None]:
    def tell(*args: Any, **kwargs: Any) -> None:
        for call in calls:
            call(*args, **kwargs)

    return tell


def as_callbacks(listed: Sequence[Callback]) -> list[Callback]:
    """Return the Trainer's callbacks for a recipe's list: neighbouring plugins as one, plain callbacks as they are."""
    callbacks: list[Callback] = []
    group: list[Plugin] = []
    for one in (*listed, None):
        if isinstance(one, Plugin):
            group.append(one)
            continue
        if group:
            callbacks.append(Notices(group))
            group = []
        if one is not None:
            callbacks.append(one)
    return callbacks
