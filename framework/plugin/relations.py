"""Declared relations between plugins, checked before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from framework.errors import UserError
from framework.plugin.plugin import Plugin


def check_relations(plugins: Sequence[Plugin]) -> None:
    """Check names, ``before``, ``after``, ``requires`` and ``conflicts`` of a recipe's plugins.

    Recipe order is execution order: plugins are not sorted; a wrong order raises an error.

    Args:
        plugins: the plugins in recipe order.

    Raises:
        UserError: if two plugins share a name or a relation is violated; the message names both and what to do.
    """
    names = [plugin.name for plugin in plugins]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two plugins are called {name!r}; give one of them another name=")
    for index, plugin in enumerate(plugins):
        for other, reason in plugin.conflicts.items():
            if rival := _find(other, plugins, but=plugin):
                raise UserError(
                    f"{plugin.name!r} conflicts with {rival.name!r}: {reason}; take one out (--without {rival.name})"
                )
        for other, reason in plugin.requires.items():
            if _find(other, plugins, but=plugin) is None:
                raise UserError(f"{plugin.name!r} requires {other}: {reason}; add {other} to the recipe's plugins")
        for other, reason in plugin.before.items():
            if rival := _find(other, plugins[:index], but=plugin):
                raise UserError(f"{plugin.name!r} must stand before {rival.name!r}: {reason}; move it up in the recipe")
        for other, reason in plugin.after.items():
            if rival := _find(other, plugins[index + 1 :], but=plugin):
                raise UserError(
                    f"{plugin.name!r} must stand after {rival.name!r}: {reason}; move it down in the recipe"
                )


def relations_of(plugin: Plugin) -> Iterator[tuple[str, str, str]]:
    """Yield the relations that a plugin declares as ``(kind, class name of the other plugin, reason)``."""
    for kind in ("before", "after", "requires", "conflicts"):
        for other, reason in getattr(plugin, kind).items():
            yield kind, other, reason


def _find(class_name: str, plugins: Sequence[Plugin], *, but: Plugin) -> Plugin | None:
    for plugin in plugins:
        if plugin is not but and any(base.__name__ == class_name for base in type(plugin).__mro__):
            return plugin
    return None
