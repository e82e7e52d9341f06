"""Forwards Lightning's callback hooks to the plugins that override them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from framework.ops.shards import whole
from framework.plugin.hooks import NOTICES
from framework.plugin.plugin import Plugin

_KEY = "plugins/"


class Notices(Callback):
    """A callback that represents several plugins in the Trainer's list of callbacks.

    Lightning calls every hook of every callback for every batch, at some 3 microseconds each; this class calls only the
    plugins that override the hook. A plugin's state is saved under its name, so a checkpoint can be loaded with other
    plugins beside it.

    Args:
        plugins: the plugins in the order in which they are called.
        group: index of this group of neighbouring plugins in the recipe's list, from 0.
    """

    def __init__(self, plugins: Sequence[Plugin], group: int = 0) -> None:
        self._plugins = list(plugins)
        self._group = group
        for notice in NOTICES:
            calls = [getattr(p, notice) for p in plugins if getattr(type(p), notice) is not getattr(Callback, notice)]
            if calls:
                setattr(self, notice, _All(calls))
        own = vars(self).get("on_load_checkpoint")
        self.on_load_checkpoint = _All([self._find_states, *([own] if own else [])])  # type: ignore[method-assign]

    @property
    def state_key(self) -> str:
        """The key of the plugins' states in checkpoints."""
        return f"{_KEY}{self._group}"

    def state_dict(self) -> dict[str, Any]:
        """Return the plugins' states by name, with sharded tensors gathered, since only one rank's state is saved."""
        return {plugin.name: whole(state) for plugin in self._plugins if (state := plugin.state_dict())}

    def _find_states(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Load the plugins' states from a checkpoint, whichever group they were saved in."""
        groups = [kept for key, kept in checkpoint["callbacks"].items() if key.startswith(_KEY)]
        for plugin in self._plugins:
            for kept in groups:
                if plugin.name in kept:
                    plugin.load_state_dict(kept[plugin.name])


class _All:
    """Calls several functions in turn; a class, so that a spawned process can be sent one."""

    def __init__(self, calls: list[Callable[..., Any]]) -> None:
        self._calls = calls

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        for call in self._calls:
            call(*args, **kwargs)


def as_callbacks(listed: Sequence[Callback]) -> list[Callback]:
    """Return the Trainer's callbacks for a recipe's list: one per group of neighbouring plugins, others as they are."""
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
