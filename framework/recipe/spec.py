"""Specification of a run: recipe, seed, overrides."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from framework.engine.attribution import Attribution
from framework.engine.skips import OnNonFinite
from framework.errors import UserError
from framework.plugin.plugin import Plugin, overrides
from framework.recipe.edits import addition_of, apply_edits
from framework.recipe.load import build_recipe, load_recipe, plugins_defined_by
from framework.recipe.recipe import Recipe, check_trainer_options
from framework.settings import as_python, is_plain
from framework.values import as_text

Source = Recipe | Callable[..., Recipe] | str | Path
Additions = Iterable[tuple[str, Mapping[str, Any]] | Plugin | str]


class RunSpec:
    """Specification of a run: recipe, seed, overrides.

    Args:
        source: path of a recipe file, a function that returns a recipe, or a recipe.
        seed: the run's seed, None for 0.
        parameters: parameters of the recipe function.
        trainer: options of Lightning's ``Trainer``, which override the recipe's.
        settings: settings of plugins to change, ``{"plugin.field": value}``.
        with_: plugins to add: ``(name, settings)``, a name, or a plugin, of which a copy is trained.
        without: names of plugins to remove.
        on_nonfinite: ``"stop"`` or ``"skip"``: what to do if the objective is infinite or not a number; None for
            ``"stop"``.
        attribute: steps between two looks at what plugins do, None for none.

    Raises:
        UserError: if one of them is wrong.
    """

    def __init__(
        self,
        source: Source,
        seed: int | None,
        parameters: Mapping[str, Any] | None,
        trainer: Mapping[str, Any] | None,
        settings: Mapping[str, Any] | None,
        with_: Additions,
        without: Iterable[str],
        on_nonfinite: OnNonFinite | None = None,
        attribute: int | None = None,
    ) -> None:
        self.attribute = attribute
        self._seed, self._on_nonfinite = as_python(seed), on_nonfinite
        seed = 0 if seed is None else as_python(seed)
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UserError(f"seed={seed!r}: must be a whole number from 0 to 2**32 - 1")
        self.seed = seed
        self.parameters = dict(parameters or {})
        self.trainer = as_python(dict(trainer or {}))
        self.settings = dict(settings or {})
        self.on_nonfinite: OnNonFinite = on_nonfinite or "stop"
        check_trainer_options(self.trainer)
        self.file = Path(source) if isinstance(source, str | Path) else None
        self._given = source if isinstance(source, Recipe) else None
        self._pristine: Recipe | None = None
        if self._given is not None:
            if self.parameters:
                raise UserError(
                    f"parameters={self.parameters!r}: a Recipe object takes none; give a recipe file or function"
                )
            self._factory: Callable[..., Recipe] | None = None
            self.name = "recipe"
        else:
            self._factory = load_recipe(self.file) if self.file is not None else source  # type: ignore[assignment]
            name = getattr(self._factory, "__name__", "recipe")
            module = getattr(self._factory, "__module__", "recipe").rpartition(".")[2]
            name = module if name == "recipe" else name if name.isidentifier() else "recipe"
            self.name = self.file.stem if self.file is not None else name
        self._local = None if self._factory is None else plugins_defined_by(self._factory)
        for flag, listed in (("with_", with_), ("without", without)):
            if isinstance(listed, str) or not isinstance(listed, Iterable):
                raise UserError(f"{flag}={listed!r}: must be a list; write {flag}=[{listed!r}]")
        self.additions = [addition_of(given, self._local) for given in with_]
        self.without = list(without)

    def on_top_of(self, record: Mapping[str, Any], *, training: bool) -> None:
        """Fill in what this specification leaves open from that of an earlier run.

        Args:
            record: what :meth:`record` of the earlier run returned, as read from ``run.json``.
            training: fill in what is about training as well: the Trainer's options, and what to do if the objective is
                not finite.
        """
        self.seed = record["seed"] if self._seed is None else self._seed
        self.parameters = {**record["parameters"], **self.parameters}
        self.settings = {**as_text(record["settings"]), **self.settings}
        # the user may have repeated the flags of the earlier run
        added = [self._added_before(one) for one in record["with"]]
        self.additions = [*added, *(one for one in self.additions if one not in added)]
        self.without = list(dict.fromkeys([*record["without"], *self.without]))
        if training:
            self.trainer = {**record["trainer"], **self.trainer}
            self.on_nonfinite = self._on_nonfinite or record["on_nonfinite"]
            self.attribute = self.attribute or record.get("attribute")

    def _added_before(self, kept: Any) -> tuple[str, dict[str, Any]] | Plugin:
        """Return a plugin that was added to an earlier run, as ``run.json`` names it."""
        if not isinstance(kept, Mapping):
            name, given = kept
            return name, as_text(given)
        for one in self.additions:
            if isinstance(one, Plugin) and one.name == kept["name"]:
                return one
        raise UserError(
            f"with_: the run was started with the plugin {kept['name']!r}, an object of {kept['class']}, which run.json"
            f" cannot hold; give it again: with_=[{kept['class'].rpartition('.')[2]}(...)]"
        )

    def build(self) -> Recipe:
        """Return the recipe with the overrides applied, a new one at every call.

        If the user gave a ``Recipe`` object, the first call returns that one, so that the user's own model is trained.
        For a second call a copy is kept, but only if a plugin may request a later phase, since it copies the weights.
        """
        # the draws of a LightningModule go on from the caller's generators, as under Lightning's Trainer
        if self._given is None or self._given.module is None or self._seed is not None:
            pl.seed_everything(self.seed, verbose=False)
        if self._factory is not None:
            recipe = build_recipe(self._factory, self.parameters)
            return self._edited(recipe, self._local)
        if self._pristine is not None:
            return self._edited(_copy(self._pristine), None)
        assert self._given is not None, "built before, without a plugin that may request a later phase"
        given, self._given = self._given, None
        edited = self._edited(given, None)
        if any(overrides(plugin, "next_phase") for plugin in edited.plugins):
            self._pristine = _copy(given)
        return edited

    def _edited(self, recipe: Recipe, local: Mapping[str, type[Plugin]] | None) -> Recipe:
        edited = apply_edits(recipe, self.settings, self.additions, self.without, local=local)
        if self.attribute is not None:
            edited = dataclasses.replace(edited, plugins=[*edited.plugins, Attribution(self.attribute)])
        return dataclasses.replace(edited, trainer=self.options(edited))

    def options(self, recipe: Recipe) -> dict[str, Any]:
        """Return the Trainer's options: the recipe's, overridden by those of this specification."""
        options: dict[str, Any] = as_python({**recipe.trainer, **self.trainer})
        return options

    def record(self) -> dict[str, Any]:
        """Return the specification as plain data for ``run.json``; objects among the Trainer's options are left out."""
        return {
            "parameters": self.parameters,
            "trainer": {name: value for name, value in self.trainer.items() if is_plain(value)},
            "settings": self.settings,
            "with": [_named(one) if isinstance(one, Plugin) else one for one in self.additions],
            "without": self.without,
            "seed": self.seed,
            "on_nonfinite": self.on_nonfinite,
            "attribute": self.attribute,
        }


def _named(plugin: Plugin) -> dict[str, str]:
    """Return how ``run.json`` names a plugin that it cannot hold."""
    return {"name": plugin.name, "class": f"{type(plugin).__module__}.{type(plugin).__qualname__}"}


def _copy(recipe: Recipe) -> Recipe:
    """Return a copy of a recipe that can be trained independently; both share the data."""
    return copy.deepcopy(recipe, {id(recipe.data): recipe.data})
