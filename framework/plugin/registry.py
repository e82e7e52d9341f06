"""Plugins that installed distributions register by name, as entry points."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from framework.errors import UserError, did_you_mean, one_line

if TYPE_CHECKING:
    from framework.plugin.plugin import Plugin

GROUP = "framework.plugins"


@dataclasses.dataclass(frozen=True)
class Registered:
    """A plugin registered by a distribution; it is not imported before :meth:`load`.

    Args:
        name: the name for ``--with``.
        target: location of the class, ``"package.module:Class"``.
        distribution: name and version of the distribution that registers it.
    """

    name: str
    target: str
    distribution: str

    def load(self) -> type[Plugin]:
        """Import and return the class.

        Raises:
            UserError: if the class cannot be imported or is no plugin; the message names plugin and distribution.
        """
        from framework.plugin.plugin import Plugin

        entry = metadata.EntryPoint(self.name, self.target, GROUP)
        try:
            kind = entry.load()
        # any exception: one broken distribution must not hide the others
        except Exception as error:
            if (shadow := _in_the_way(self.target)) is not None:
                raise UserError(
                    f"plugin {self.name!r} of {self.distribution} cannot be imported: {shadow} stands in the way of the"
                    f" package {self.target.partition('.')[0]!r}; rename it, or start from another folder"
                ) from error
            raise UserError(
                f"plugin {self.name!r} of {self.distribution} cannot be imported from {self.target}:"
                f" {type(error).__name__}: {one_line(error)}"
            ) from error
        if not (isinstance(kind, type) and issubclass(kind, Plugin)):
            raise UserError(
                f"plugin {self.name!r} of {self.distribution}: {self.target} is not a subclass of framework.Plugin"
            )
        return kind


def _in_the_way(target: str) -> str | None:
    """Return the user's file or folder that Python finds in place of a plugin's package, None if there is none."""
    package = target.partition(":")[0].partition(".")[0]
    found = Path.cwd() / f"{package}.py"
    folder = Path.cwd() / package
    for one in (found, folder):
        loaded = getattr(sys.modules.get(package), "__file__", None)
        if one.exists() and (loaded is None or Path(loaded).is_relative_to(Path.cwd())):
            return str(one)
    return None


def registered() -> list[Registered]:
    """Return all registered plugins, sorted by name; a registered plugin is only used if a recipe contains it.

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
    """Find a plugin class by name.

    Args:
        name: the name in ``local`` or the registered name.
        local: classes that take precedence, such as those of the recipe file.

    Raises:
        UserError: if the name is unknown (the message suggests a similar one) or registered twice, or if the class
            cannot be loaded.
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
