"""Edit a recipe's plugins from outside: remove some, add some, change settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

from framework.errors import UserError, did_you_mean
from framework.plugin.facts import snake_case
from framework.plugin.plugin import Plugin
from framework.plugin.registry import find_plugin
from framework.values import misfit, read_value

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    from framework.recipe.recipe import Recipe


def apply_edits(
    recipe: Recipe,
    settings: Mapping[str, Any] | None = None,
    with_: Iterable[tuple[str, Mapping[str, Any]]] = (),
    without: Iterable[str] = (),
    *,
    local: Mapping[str, type[Plugin]] | None = None,
) -> Recipe:
    """Return a copy of the recipe with edited plugins: first remove some, then add some, then change settings.

    Args:
        recipe: the recipe, which is not changed.
        settings: new values by ``"plugin.field"``; the plugin is constructed again, so that all its checks run.
        with_: ``(name, settings)`` of plugins to add. Each is placed at the end, or in front of the first plugin that
            it declares to stand before.
        without: names of plugins to remove.
        local: plugin classes by name that take precedence over registered ones, such as those of the recipe file.

    Raises:
        UserError: if a plugin, a field or a value is unknown or wrong.
    """
    plugins = list(recipe.plugins)
    for name in without:
        del plugins[_index(plugins, name, f"--without {name}")]
    for name, fields in with_:
        _insert(plugins, _made(find_plugin(name, local), fields, f"--with {name}"))
    for path, value in (settings or {}).items():
        who = f"--set {path}"
        name, dot, field = path.rpartition(".")
        if not dot:
            raise UserError(f"{who}: write it as plugin.field=value, such as weight_noise.std=0.05")
        index = _index(plugins, name, who)
        plugin = plugins[index]
        if not isinstance(plugin, Plugin):
            raise UserError(
                f"{who}: {name} is a plain Lightning callback, whose settings can only be changed in the recipe"
            )
        plugins[index] = dataclasses.replace(plugin, **read_fields(type(plugin), {field: value}, who))
    return dataclasses.replace(recipe, plugins=plugins)


def name_of(plugin: Callback) -> str:
    """Return a plugin's name, or the class name in snake case of a plain Lightning callback."""
    return plugin.name if isinstance(plugin, Plugin) else snake_case(type(plugin).__name__)


def _index(plugins: Sequence[Callback], name: str, who: str) -> int:
    names = [name_of(plugin) for plugin in plugins]
    if name not in names:
        raise UserError(f"{who}: the recipe has no plugin {name!r}{did_you_mean(name, names)}")
    return names.index(name)


def _made(kind: type[Plugin], fields: Mapping[str, Any], who: str) -> Plugin:
    values = read_fields(kind, fields, who)
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.init and field.name not in values:
            raise UserError(f"{who}: {kind.__name__} needs a value for {field.name}, as in {who}:{field.name}=…")
    return kind(**values)


def read_fields(kind: type[Plugin], fields: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Parse settings of a plugin class by their declared types.

    Args:
        kind: the class.
        fields: values by name, such as :class:`framework.values.Text` from the command line.
        who: the flag they were given with, for error messages.

    Raises:
        UserError: if a setting is unknown or a value is wrong.
    """
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for name, value in fields.items():
        if name not in known:
            raise UserError(f"{who}: {kind.__name__} has no setting {name!r}{did_you_mean(name, known)}")
        values[name] = read_value(value, hints[name])
        problem = misfit(values[name], hints[name])
        if problem:
            raise UserError(f"{who}: {kind.__name__}({name}={values[name]!r}): {name} must be {problem}")
    return values


def _insert(plugins: list[Callback], plugin: Plugin) -> None:
    if plugin.name in map(name_of, plugins):
        raise UserError(
            f"--with {plugin.name}: the recipe already has a plugin of this name; change it with"
            f" --set {plugin.name}.<field>=<value>, or give the new one another name: --with {plugin.name}:name=…"
        )
    own = {base.__name__ for base in type(plugin).__mro__}
    for index, other in enumerate(plugins):
        classes = {base.__name__ for base in type(other).__mro__}
        if classes & plugin.before.keys() or (isinstance(other, Plugin) and own & other.after.keys()):
            plugins.insert(index, plugin)
            return
    plugins.append(plugin)
