"""Plugins that installed distributions make available by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING

from framework.errors import UserError, did_you_mean, one_line

if TYPE_CHECKING:
    from framework.plugin.plugin import Plugin

GROUP = "framework.plugins"


@dataclasses.dataclass(frozen=True)
class Registered:
    """A plugin that a distribution makes available; nothing of it is imported before :meth:`load`.

    Args:
        name: the name for ``--with``.
        target: where the class is, ``"package.module:Class"``.
        distribution: name and version of the distribution that registers it.
    """

    name: str
    target: str
    distribution: str

    def load(self) -> type[Plugin]:
        """Import and return the class.

        Raises:
            UserError: naming plugin and distribution, where the class cannot be imported or is no plugin.
        """
        from framework.plugin.plugin import Plugin

        entry = metadata.EntryPoint(self.name, self.target, GROUP)
        try:
            kind = entry.load()
        # whatever a third party's module raises: one broken distribution must not hide the others
        except Exception as error:
            raise UserError(
                f"plugin {self.name!r} of {self.distribution} cannot be imported from {self.target}:"
                f" {type(error).__name__}: {one_line(error)}"
            ) from error
        if not (isinstance(kind, type) and issubclass(kind, Plugin)):
            raise UserError(f"plugin {self.name!r} of {self.distribution}: {self.target} is no framework.Plugin class")
        return kind


def registered() -> list[Registered]:
    """Return every registered plugin by name; being here turns nothing on.

    A distribution registers a plugin in its ``pyproject.toml``::

        [project.entry-points."framework.plugins"]
        my_plugin = "my_package.my_plugin:MyPlugin"
    """
    found = set()
    for entry in metadata.entry_points(group=GROUP):
        owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unnamed distribution"
        found.add(Registered(entry.name, entry.value, owner))
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))


def find_plugin(name: str, local: Mapping[str, type[Plugin]] | None = None) -> type[Plugin]:
    """Return the plugin class of a name.

    Args:
        name: as registered, or as in ``local``.
        local: classes that come first, such as those of the recipe file.

    Raises:
        UserError: where the name is unknown (with the name meant), registered twice, or its class is broken.
    """
    if local and name in local:
        return local[name]
    every = registered()
    matches = [plugin for plugin in every if plugin.name == name]
    if not matches:
        known = [*(local or ()), *(plugin.name for plugin in every)]
        hint = (
            did_you_mean(name, known) if known else "; none is installed: `pip install -e .` registers the bundled ones"
        )
        raise UserError(f"no plugin is called {name!r}{hint}")
    if len({plugin.target for plugin in matches}) > 1:
        owners = " and ".join(plugin.distribution for plugin in matches)
        raise UserError(f"plugin {name!r} is registered by {owners}; uninstall one, or write the class into the recipe")
    return matches[0].load()
