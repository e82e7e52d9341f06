"""Edit a recipe's plugins from outside: remove some, add some, change settings."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from pytorch_lightning import Callback

from framework.errors import UserError, did_you_mean
from framework.plugin.facts import snake_case
from framework.plugin.plugin import Plugin
from framework.plugin.registry import find_plugin
from framework.settings import is_default, is_plain
from framework.values import misfit, read_value

if TYPE_CHECKING:
    from framework.recipe.recipe import Recipe


def apply_edits(
    recipe: Recipe,
    settings: Mapping[str, Any] | None = None,
    with_: Iterable[tuple[str, Mapping[str, Any]] | Plugin] = (),
    without: Iterable[str] = (),
    *,
    local: Mapping[str, type[Plugin]] | None = None,
) -> Recipe:
    """Return a copy of the recipe with edited plugins: first remove some, then add some, then change settings.

    Args:
        recipe: the recipe, which is not changed.
        settings: new values by ``"plugin.field"``; the plugin is constructed again, so that all its checks run.
        with_: plugins to add: ``(name, settings)``, or a plugin, of which a copy is added. Each is placed at the end,
            or in front of the first plugin that it declares to stand before.
        without: names of plugins to remove.
        local: plugin classes by name that take precedence over registered ones, such as those of the recipe file.

    Raises:
        UserError: if a plugin, a field or a value is unknown or wrong.
    """
    plugins = list(recipe.plugins)
    for name in without:
        del plugins[_index(plugins, name, f"--without {name}")]
    for given in with_:
        if isinstance(given, Plugin):
            _insert(plugins, copy.deepcopy(given))
        else:
            name, fields = given
            _insert(plugins, _made(find_plugin(name, local), fields, f"--with {name}"))
    changed: dict[int, dict[str, Any]] = {}
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
        changed.setdefault(index, {}).update(read_fields(type(plugin), {field: value}, who))
    for index, fields in changed.items():  # together, since some settings only make sense beside others
        plugins[index] = dataclasses.replace(cast("Plugin", plugins[index]), **fields)
    return dataclasses.replace(recipe, plugins=plugins)


def addition_of(given: Any, local: Mapping[str, type[Plugin]] | None = None) -> tuple[str, dict[str, Any]] | Plugin:
    """Return what ``with_`` gives for one plugin as ``(name, settings)``, which ``run.json`` can hold.

    Args:
        given: ``(name, settings)``, a name, or a plugin.
        local: plugin classes by name that take precedence over registered ones.

    Returns:
        ``(name, settings)``; the plugin itself if its class is not registered, or its settings are not plain data.

    Raises:
        UserError: if it is something else.
    """
    if isinstance(given, str):
        return given, {}
    if isinstance(given, Plugin):
        kind, name = type(given), snake_case(type(given).__name__)
        fields = [field for field in dataclasses.fields(kind) if field.init]
        values = {field.name: getattr(given, field.name) for field in fields}
        changed = {f.name: values[f.name] for f in fields if not is_default(f, values[f.name])}
        if changed.get("name") == name:
            del changed["name"]
        try:
            known = find_plugin(name, local) is kind
        except UserError:
            known = False
        whole = set(inspect.signature(kind).parameters) == {field.name for field in fields}  # no __init__ of its own
        return (name, changed) if known and whole and is_plain(changed) else given
    if isinstance(given, (tuple, list)) and len(given) == 2 and isinstance(given[0], str):
        name, settings = given
        if isinstance(settings, Mapping):
            return name, dict(settings)
    hint = f"; write {given.__name__}(), an instance of it" if isinstance(given, type) else ""
    if not hint and isinstance(given, Callback):
        hint = "; give a Lightning callback as trainer={'callbacks': [...]}"
    raise UserError(
        f"with_=[{given!r}]: must be a plugin, such as SAM(), its name, or (name, settings), such as ('sam', {{'rho':"
        f" 0.1}}){hint}"
    )


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
