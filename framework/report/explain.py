"""Explain what a recipe will do: which plugins act at which hook point, and how their results combine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from framework.ops.patterns import parameter_counts
from framework.plugin.hooks import HOOK_POINTS, RULES
from framework.plugin.plugin import Plugin, overrides
from framework.plugin.relations import check_relations, relations_of
from framework.recipe.edits import name_of
from framework.recipe.lint import lint
from framework.report.table import paragraph, table

if TYPE_CHECKING:
    from pytorch_lightning import Callback

    from framework.engine.core import Core
    from framework.recipe.recipe import Recipe


def explain(recipe: Recipe) -> str:
    """Return the explanation of a recipe as plain text of at most 120 columns.

    Raises:
        UserError: if a declared relation is violated or a pattern matches nothing, as when training.
    """
    plugins = [plugin for plugin in recipe.plugins if isinstance(plugin, Plugin)]
    check_relations(plugins)
    parts = [
        _setting(recipe),
        _listed("Plugins, in the order in which they are called", _plugins(recipe.plugins)),
        _listed("Hook points, in the order in which a run reaches them", _hook_points(plugins)),
        _unused(plugins),
        _listed("How results combine", _rules(plugins)),
        _listed("Declared relations", _relations(plugins)),
    ]
    # attaching the plugins shows patterns that match nothing before training
    core = recipe.make_core(0, recipe.trainer)
    core.attach_plugins()
    parts.append(_listed("Findings", _findings(recipe, core)))
    return "\n\n".join(part for part in parts if part)


def _setting(recipe: Recipe) -> str:
    total, trained = parameter_counts(recipe.model)
    data = recipe.data
    parts = [("training", "train"), ("validation", "val"), ("test", "test")]
    known = [(name, data.samples(part)) for name, part in parts]
    sizes = ", ".join(f"{count:,} {name}" for name, count in known if count is not None) or "as the loaders yield them"
    options = ", ".join(f"{name}={value!r}" for name, value in recipe.trainer.items())
    rows = [
        ["network", f"{type(recipe.model).__name__}, {total:,} parameters, {trained:,} of them trained"],
        ["samples", f"{sizes}; {data.batch_size:,} a batch" if data.samples("train") else sizes],
        ["objective", _objective(recipe)],
        ["best by", f"{recipe.monitor or 'what the module monitors'} ({recipe.mode})"],
        ["trainer", options or "Lightning's defaults"],
        *(["data", sentence] for sentence in data.lost()),
    ]
    return table(rows, indent=0)


def _objective(recipe: Recipe) -> str:
    own = recipe.core.compute_loss if recipe.module is None else recipe.module.training_step
    loss = recipe.loss if recipe.loss is not None else own
    name = getattr(loss, "__qualname__", type(loss).__name__)
    terms = [plugin.name for plugin in recipe.plugins if isinstance(plugin, Plugin) and _has_term(plugin)]
    return " + ".join([f"J ({name})", *(f"α·Ω ({term})" for term in terms)])


def _has_term(plugin: Plugin) -> bool:
    return overrides(plugin, "penalty") or overrides(plugin, "weight_penalty")


def _plugins(plugins: Sequence[Callback]) -> list[list[str]]:
    rows = []
    for number, plugin in enumerate(plugins, 1):
        if isinstance(plugin, Plugin):
            settings = {name: value for name, value in plugin.settings().items() if name != "name"}
            text = ", ".join(f"{name}={value!r}" for name, value in settings.items()) or "no settings"
        else:
            text = "a plain Lightning callback, which implements no hook point"
        rows.append([str(number), name_of(plugin), type(plugin).__name__, text])
    return [["", "name", "class", "settings"], *rows] if rows else []


def _hook_points(plugins: Sequence[Plugin]) -> list[list[str]]:
    rows = []
    for point in HOOK_POINTS:
        names = [plugin.name for plugin in plugins if overrides(plugin, point.name)]
        if names:
            rows.append([point.name, point.rule, ", ".join(names), point.when])
    return [["hook point", "combined by", "plugins, in order", "called"], *rows] if rows else []


def _unused(plugins: Sequence[Plugin]) -> str:
    silent = [p.name for p in HOOK_POINTS if not any(overrides(plugin, p.name) for plugin in plugins)]
    return paragraph(f"Hook points without a plugin: {', '.join(silent)}.", indent=0) if silent else ""


def _rules(plugins: Sequence[Plugin]) -> list[list[str]]:
    used = {p.rule for p in HOOK_POINTS if any(overrides(plugin, p.name) for plugin in plugins)}
    return [[rule, meaning] for rule, meaning in RULES.items() if rule in used]


def _relations(plugins: Sequence[Plugin]) -> list[list[str]]:
    words = {
        "before": "stands before",
        "after": "stands after",
        "requires": "requires",
        "conflicts": "conflicts with",
    }
    present = {base.__name__ for plugin in plugins for base in type(plugin).__mro__}
    return [
        [plugin.name, words[kind], other, "holds" if other in present else "not in this recipe", reason]
        for plugin in plugins
        for kind, other, reason in relations_of(plugin)
    ]


def _findings(recipe: Recipe, core: Core) -> list[list[str]]:
    found = lint(recipe, core, recipe.trainer)
    return [[one.severity, one.about, one.message] for one in found] or [["none"]]


def _listed(title: str, rows: list[list[str]]) -> str:
    return f"{title}\n{table(rows)}" if rows else ""
