"""How plugins get Lightning's notices without costing where they don't listen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from framework.ops.shards import whole
from framework.plugin.hooks import NOTICES
from framework.plugin.plugin import Plugin

_KEY = "plugins/"


class Notices(Callback):
    """Stands for several plugins in the Trainer's list of callbacks.

    Lightning asks every callback for every notice of every batch, at some 3 microseconds each; this asks the plugins
    that listen. Their states are kept under their names, and found by them whichever plugins stood beside them.

    Args:
        plugins: plugins in the order in which they are told.
        group: which group of neighbouring plugins in the recipe's list this is, from 0.
    """

    def __init__(self, plugins: Sequence[Plugin], group: int = 0) -> None:
        self._plugins = list(plugins)
        self._group = group
        for notice in NOTICES:
            calls = [getattr(p, notice) for p in plugins if getattr(type(p), notice) is not getattr(Callback, notice)]
            if calls:
                setattr(self, notice, _all(calls))
        own = vars(self).get("on_load_checkpoint")
        self.on_load_checkpoint = _all([self._find_states, *([own] if own else [])])  # type: ignore[method-assign]

    @property
    def state_key(self) -> str:
        """The key in checkpoints."""
        return f"{_KEY}{self._group}"

    def state_dict(self) -> dict[str, Any]:
        """Return the plugins' states by name, sharded tensors made whole: one rank's part would be saved alone."""
        return {plugin.name: whole(state) for plugin in self._plugins if (state := plugin.state_dict())}

    def _find_states(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Give the plugins their states, in whichever group they are kept."""
        groups = [kept for key, kept in checkpoint["callbacks"].items() if key.startswith(_KEY)]
        for plugin in self._plugins:
            for kept in groups:
                if plugin.name in kept:
                    plugin.load_state_dict(kept[plugin.name])


def _all(calls: list[Callable[..., Any]]) -> Callable[..., None]:
    def tell(*args: Any, **kwargs: Any) -> None:
        for call in calls:
            call(*args, **kwargs)

    return tell


def as_callbacks(listed: Sequence[Callback]) -> list[Callback]:
    """Return the Trainer's callbacks for a recipe's list: neighbouring plugins as one, plain callbacks as they are."""
    callbacks: list[Callback] = []
    group: list[Plugin] = []
    groups = 0
    for one in (*listed, None):
        if isinstance(one, Plugin):
            group.append(one)
            continue
        if group:
            callbacks.append(Notices(group, groups))
            group, groups = [], groups + 1
        if one is not None:
            callbacks.append(one)
    return callbacks
