"""Load recipe files: import the function ``recipe`` from a path, and call it to get a :class:`framework.Recipe`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

from framework.errors import UserError, did_you_mean
from framework.values import misfit, read_value

if TYPE_CHECKING:
    from framework.plugin.plugin import Plugin
    from framework.recipe.recipe import Recipe

    Factory = Callable[..., Recipe]


def load_recipe(path: str | Path) -> Factory:
    """Import a recipe file and return its function ``recipe``.

    The file is imported under its own name with its folder on ``sys.path``, as for a script, so that what it defines
    can be pickled for spawned loader workers and ranks.

    Args:
        path: a Python file that defines ``recipe(…) -> Recipe``.

    Raises:
        UserError: if there is no such file, its name cannot be imported, or it defines no function ``recipe``.
        Exception: any error that the file itself raises, unchanged.
    """
    file = _file(path)
    module = _import(file)
    factory = getattr(module, "recipe", None)
    if factory is None:
        functions = [name for name, _ in inspect.getmembers(module, inspect.isfunction) if not name.startswith("_")]
        raise UserError(f"{path} defines no function recipe(…) -> Recipe{did_you_mean('recipe', functions)}")
    if not inspect.isfunction(factory):
        raise UserError(
            f"{path}: recipe is of type {type(factory).__name__}; write it as a function recipe(…) -> Recipe"
        )
    result: Factory = factory
    return result


def build_recipe(factory: Factory, parameters: Mapping[str, Any] | None = None) -> Recipe:
    """Call a recipe function and return the recipe, a new one at every call.

    Args:
        factory: a function that returns a :class:`framework.Recipe`.
        parameters: its arguments by name; text and plain data are parsed by the declared types.

    Raises:
        UserError: if a parameter is unknown, missing or of the wrong type, or the function returns no ``Recipe``.
        Exception: any error that the function itself raises, unchanged.
    """
    from framework.recipe.recipe import Recipe

    given = dict(parameters or {})
    who = f"{factory.__module__}.{factory.__qualname__}" if hasattr(factory, "__qualname__") else repr(factory)
    known = inspect.signature(factory).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        names = [parameter.name for parameter in known if parameter.kind is not parameter.VAR_POSITIONAL]
        for name in given:
            if name not in names:
                raise UserError(f"{who} has no parameter {name!r}{did_you_mean(name, names)}")
    for parameter in known:
        optional = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if not optional and parameter.default is parameter.empty and parameter.name not in given:
            raise UserError(f"{who} needs a value for its parameter {parameter.name!r}; give it a default or a value")
    hints = get_type_hints(factory, include_extras=True)
    for name, value in given.items():
        given[name] = read_value(value, hints.get(name, Any))
        problem = misfit(given[name], hints.get(name, Any))
        if problem:
            raise UserError(f"{who}({name}={given[name]!r}): {name} must be {problem}")
    recipe = factory(**given)
    if not isinstance(recipe, Recipe):
        hint = "; does it end in `return Recipe(…)`?" if recipe is None else ""
        raise UserError(f"{who} returned {type(recipe).__name__}, not a Recipe{hint}")
    defaults = {parameter.name: parameter.default for parameter in known if parameter.default is not parameter.empty}
    recipe.parameters = {**defaults, **given}
    return recipe


def plugins_defined_by(factory: Factory) -> dict[str, type[Plugin]]:
    """Return the plugin classes that the recipe function's own file defines, by name in snake case."""
    from framework.plugin.facts import snake_case
    from framework.plugin.plugin import Plugin

    module = sys.modules.get(factory.__module__)
    classes = [value for value in vars(module).values() if isinstance(value, type)] if module else []
    own = [kind for kind in classes if issubclass(kind, Plugin) and kind.__module__ == factory.__module__]
    return {snake_case(kind.__name__): kind for kind in own}


def _file(path: str | Path) -> Path:
    file = Path(path).expanduser().resolve()
    if file.is_dir():
        raise UserError(f"{path} is a folder; name a recipe file in it{_neighbours(file, '')}")
    if not file.is_file():
        raise UserError(f"no such recipe: {path}{_neighbours(file.parent, file.name)}")
    if file.suffix != ".py":
        raise UserError(f"{path} is not a recipe: a recipe is a Python file (*.py)")
    if "." in file.stem:
        raise UserError(f"{path} cannot be imported; rename it without the dot in {file.stem!r}")
    return file


def _neighbours(folder: Path, name: str) -> str:
    recipes = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"] if folder.is_dir() else []
    return did_you_mean(name, recipes) if recipes else ""


_added_folder: str | None = None


def _import(file: Path) -> ModuleType:
    """Execute ``file`` as a top-level module under its name, by which child processes import it too."""
    global _added_folder
    # only one recipe's folder at a time, since two folders may hold recipes or helpers of the same name
    if _added_folder in sys.path and _added_folder != str(file.parent):
        sys.path.remove(_added_folder)
    if str(file.parent) not in sys.path:
        # last, not first as for a script: a file random.py beside the recipe must not hide Python's own module
        sys.path.append(str(file.parent))
        _added_folder = str(file.parent)
    loaded = sys.modules.get(file.stem)
    if loaded is not None and "_is_recipe" in vars(loaded):
        del sys.modules[file.stem]
    importlib.invalidate_caches()
    found = importlib.util.find_spec(file.stem)
    if found is None or found.origin is None or Path(found.origin).resolve() != file:
        holder = found.origin if found and found.origin else "Python itself"
        raise UserError(f"{file.name} has the name of an installed module ({holder}); rename the recipe")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module._is_recipe = True  # type: ignore[attr-defined]
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
    return module
