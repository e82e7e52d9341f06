"""The space of a study: which settings and parameters are searched, where, and which plugins may be left out."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

from framework.errors import UserError, did_you_mean
from framework.plugin.plugin import Plugin, overrides
from framework.ranges import Choices, LogRange, Searched, range_of, read_range, whole_numbers
from framework.recipe.recipe import Recipe
from framework.settings import plain
from framework.tune.order import Order

if TYPE_CHECKING:
    from optuna.trial import Trial

# what belongs to optimization, of which a run without would be another one
_NEEDED = ("make_optimizer", "make_scheduler", "group_parameters", "next_phase")
_PLAIN = (type(None), bool, int, float, str)


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One searched setting or parameter.

    Args:
        name: ``plugin.setting``, or the name of a parameter of the recipe.
        searched: its range.
        value: its value in the recipe.
        whole: whether it takes whole numbers only.
    """

    name: str
    searched: Searched
    value: Any
    whole: bool = False

    @property
    def plugin(self) -> str | None:
        """Name of the setting's plugin; None for a parameter."""
        return self.name.rpartition(".")[0] or None

    @property
    def default(self) -> Any:
        """The value in the recipe as Optuna keeps it; None if it lies outside of the range."""
        if isinstance(self.searched, Choices):
            return _kept(self.value) if self.value in self.searched.values else None
        number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        return self.value if number and self.searched.low <= self.value <= self.searched.high else None

    def suggest(self, trial: Trial) -> Any:
        """Return the trial's value."""
        searched = self.searched
        if isinstance(searched, Choices):
            kept = trial.suggest_categorical(self.name, [_kept(one) for one in searched.values])
            return next(one for one in searched.values if _kept(one) == kept)
        log = isinstance(searched, LogRange)
        if self.whole:
            return trial.suggest_int(self.name, int(searched.low), int(searched.high), log=log)
        return trial.suggest_float(self.name, searched.low, searched.high, log=log)


class Space:
    """What a study searches.

    Args:
        order: the study's order.
        recipe: the recipe, the order's own changes applied.

    Raises:
        UserError: if the space is empty, or a range is not possible.
    """

    def __init__(self, order: Order, recipe: Recipe) -> None:
        self.order = order
        self.plugins = [plugin for plugin in recipe.plugins if isinstance(plugin, Plugin)]
        self.switches = [plugin.name for plugin in self.plugins if regularizes(plugin)] if order.cocktail else []
        self.dimensions = list(self._dimensions(recipe))
        if not self.dimensions and not self.switches:
            raise UserError(
                "the space is empty: no setting that the recipe uses declares a range; give one, such as"
                " --search weight_noise.std=1e-3..1e-1, or --cocktail"
            )

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Return a trial's choice: ``parameters``, ``settings`` and names of plugins to leave out (``without``).

        A plugin that conflicts with one before it is left out, and so is one that needs another that is left out. A
        setting of a plugin that is left out, or one without effect beside the others, is not asked for.
        """
        without = self._off(trial)
        chosen: dict[str, Any] = {"parameters": {}, "settings": {}, "without": without}
        current = {plugin.name: plugin for plugin in self.plugins if plugin.name not in without}
        # choices first: whether a number has an effect may depend on them
        for one in sorted(self.dimensions, key=lambda one: not isinstance(one.searched, Choices)):
            if one.plugin is None:
                chosen["parameters"][one.name] = one.suggest(trial)
                continue
            field = one.name.rpartition(".")[2]
            if one.plugin in current and field not in current[one.plugin].idle:
                value = chosen["settings"][one.name] = one.suggest(trial)
                if isinstance(one.searched, Choices):
                    current[one.plugin] = dataclasses.replace(current[one.plugin], **{field: value})
        return chosen

    def defaults(self) -> dict[str, Any]:
        """Return the recipe's own values, as far as they lie in the space: the first trial."""
        values = {one.name: one.default for one in self.dimensions if one.default is not None}
        return {**values, **{_switch(name): True for name in self.switches}}

    def rows(self) -> list[list[str]]:
        """Return name, range and the recipe's value of everything that is searched."""
        rows = [[name, "on, off", "on"] for name in self.switches]
        return rows + [[one.name, str(one.searched), str(one.value)] for one in self.dimensions]

    def __str__(self) -> str:
        return "; ".join(f"{name}={searched}" for name, searched, _ in self.rows())

    def _off(self, trial: Trial) -> list[str]:
        """Return the plugins that a trial leaves out, in the recipe's order."""
        on = [plugin for plugin in self.plugins if plugin.name not in self.switches]
        for plugin in self.plugins:
            if plugin.name in self.switches and trial.suggest_categorical(_switch(plugin.name), [True, False]):
                on += [] if any(_conflict(plugin, other) for other in on) else [plugin]
        return left_out(self.plugins, [plugin.name for plugin in self.plugins if plugin not in on])

    def _dimensions(self, recipe: Recipe) -> Iterator[Dimension]:
        search, fixed = dict(self.order.search), {**self.order.parameters, **self.order.settings}
        for name in search:
            if name in fixed:
                raise UserError(f"search {name}: it is fixed to {fixed[name]!r} as well; give one of the two")
        follows = self._follows(recipe)
        for owner, annotation, value, name in self._candidates(recipe):
            given, leader = search.pop(name, None), follows.get(name)
            if given is not None:
                if leader is not None and leader not in fixed:
                    raise UserError(f"search {name}: the parameter {leader}, searched too, sets it; search one")
                yield _dimension(name, read_range(given, annotation, name), value, annotation)
            elif name not in fixed and leader is None:
                used = isinstance(value, (int, float)) and not isinstance(value, bool) and value != 0
                declared = range_of(annotation)
                if declared is not None and used and (owner is None or name.rpartition(".")[2] not in owner.idle):
                    yield _dimension(name, declared, value, annotation)
        for name in search:
            plugin = name.rpartition(".")[0]
            if plugin and plugin not in [one.name for one in self.plugins]:
                why = "is left out" if plugin in self.order.without else "is not in the recipe; add it by --with"
                raise UserError(f"search {name}: the plugin {plugin} {why}")
            known = [found for *_, found in self._candidates(recipe)]
            raise UserError(f"search {name}: no such setting or parameter{did_you_mean(name, known)}")

    def _follows(self, recipe: Recipe) -> dict[str, str]:
        """Return for each setting that a searched or fixed parameter of the recipe sets, the name of that parameter.

        A trial that searched both would set what the parameter says to something else.
        """
        found: dict[str, str] = {}
        every = list(self._candidates(recipe))
        before = {path: plain(value) for owner, _, value, path in every if owner is not None}
        for _, annotation, value, name in [one for one in every if one[0] is None]:
            given = self.order.search.get(name)
            searched = range_of(annotation) if given is None else read_range(given, annotation, name)
            if name in self.order.parameters:
                others = _others(value)
            elif searched is not None:
                others = list(searched.values) if isinstance(searched, Choices) else [searched.low, searched.high]
            else:
                continue
            for other in [one for one in others if one != value][:1]:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        changed = self.order.spec({"parameters": {name: other}}).build()
                except Exception:  # whatever the recipe raises, it takes no such value
                    continue
                after = {path: plain(one) for owner, _, one, path in self._candidates(changed) if owner is not None}
                found |= {path: name for path in before if path in after and after[path] != before[path]}
        return found

    def _candidates(self, recipe: Recipe) -> Iterator[tuple[Plugin | None, Any, Any, str]]:
        factory = inspect.unwrap(self.order.factory())
        hints = get_type_hints(factory, include_extras=True)
        for name, value in recipe.parameters.items():
            yield None, hints.get(name, Any), value, name
        for plugin in [one for one in recipe.plugins if isinstance(one, Plugin)]:
            hints = get_type_hints(type(plugin), include_extras=True)
            for field in dataclasses.fields(plugin):
                if field.name != "name":
                    yield plugin, hints[field.name], getattr(plugin, field.name), f"{plugin.name}.{field.name}"


def _others(value: Any) -> list[Any]:
    """Return another value of a parameter, to see what follows it; none of a kind that is no number."""
    if isinstance(value, bool):
        return [not value]
    return [value + 1] if isinstance(value, int) else [1.5 * value + 0.01] if isinstance(value, float) else []


def _dimension(name: str, searched: Searched, value: Any, annotation: Any) -> Dimension:
    return Dimension(name, searched, value, whole_numbers(annotation))


def _kept(value: Any) -> Any:
    """Return a choice as Optuna can keep it: text in place of a list or mapping."""
    return value if type(value) in _PLAIN else str(value)


def _switch(name: str) -> str:
    return f"use {name}"


def _conflict(one: Plugin, other: Plugin) -> bool:
    return bool(one.conflicts.keys() & _classes(other) or other.conflicts.keys() & _classes(one))


def _lacks(plugin: Plugin, on: Sequence[Plugin]) -> bool:
    """Return whether a plugin that this one requires, or whose settings it moves, is not among others."""
    classes = {name for other in on if other is not plugin for name in _classes(other)}
    names = {other.name for other in on}
    return bool(plugin.requires.keys() - classes) or any(path.rpartition(".")[0] not in names for path in plugin.moves)


def left_out(plugins: Sequence[Plugin], names: Sequence[str]) -> list[str]:
    """Return the names of plugins that are left out, with those that cannot do without them, in the recipe's order.

    Args:
        plugins: the recipe's plugins.
        names: names of those that are not wanted.
    """
    on = [plugin for plugin in plugins if plugin.name not in names]
    while lacking := [plugin for plugin in on if _lacks(plugin, on)]:
        on = [plugin for plugin in on if plugin not in lacking]
    return [plugin.name for plugin in plugins if plugin not in on]


def _classes(plugin: Plugin) -> set[str]:
    return {base.__name__ for base in type(plugin).__mro__}


def regularizes(plugin: Plugin) -> bool:
    """Return whether a plugin is one that a trial may do without.

    It is not there to optimize, moves no other plugin's setting, and does not only hand back the best epoch, whose
    figure is a trial's in any case.
    """
    return not any(overrides(plugin, hook) for hook in _NEEDED) and not plugin.moves and not plugin.restores_best
