"""What a study is asked to do; each worker gets a copy."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from framework.errors import UserError, did_you_mean, one_line
from framework.plugin.plan import higher_is_better, ways_of
from framework.recipe.lint import lint, plan_of, raise_or_warn
from framework.recipe.load import load_recipe
from framework.recipe.recipe import Recipe
from framework.recipe.spec import RunSpec, Source
from framework.settings import plain

_QUIET = {"enable_progress_bar": False, "enable_model_summary": False}  # in one of many runs

Prune = Literal["none", "median", "asha", "hyperband", "wilcoxon"]
Sampler = Literal["tpe", "random"]


@dataclasses.dataclass
class Order:
    """What a study is asked to do.

    Args:
        recipe: path of a recipe file, or a function that returns a recipe.
        name: the name of the study or ablation.
        logs: folder of all runs.
        storage: where the study is kept, see :func:`framework.tune.storage.open_storage`; None for a journal file in
            its folder.
        parameters: parameters of the recipe function.
        trainer: options of the Trainer.
        settings: settings of plugins.
        with_: plugins to add: names, or ``(name, settings)``.
        without: names of plugins to leave out.
        search: ranges by name of a setting or parameter, beside those that are declared.
        cocktail: let every plugin that regularizes be on or off.
        seeds: runs of a trial with different seeds, from 0.
        folds: runs of a trial with different validation folds; 0 for the recipe's own split.
        metric: tag of the figure that is sought, None for the recipe's monitor.
        mode: ``"min"`` or ``"max"``, None for the recipe's.
        prune: how trials are given up before their end.
        sampler: how settings are chosen.
        seed: seed of the choice of settings.
        kind: folder of all studies, or of all ablations.
        threads: threads of a worker.
        callbacks: the recipe's own callbacks of the Trainer, known once it is built.
    """

    recipe: Source
    name: str = "study"
    logs: str | Path = "lightning_logs"
    storage: str | None = None
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trainer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    with_: Sequence[Any] = ()
    without: Sequence[str] = ()
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cocktail: bool = False
    seeds: int = 1
    folds: int = 0
    metric: str | None = None
    mode: str | None = None
    prune: Prune = "none"
    sampler: Sampler = "tpe"
    seed: int = 0
    kind: str = "studies"
    threads: int = 1
    callbacks: Sequence[Any] = ()
    _factory: Any = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", self.name):
            raise UserError(f"name={self.name!r}: must consist of letters, digits, '_', '-' and '.'")
        if self.storage is not None and "://" not in self.storage:
            raise UserError(
                f"storage={self.storage!r}: must be an address, postgresql+psycopg://..., sqlite:///FILE or"
                " grpc://HOST:PORT; leave it out for a journal file in the study's folder"
            )

    @property
    def folder(self) -> Path:
        """The folder of the study or ablation."""
        return Path(self.logs) / self.spec({}).name / self.kind / self.name

    @property
    def where(self) -> str:
        """Where the study is kept."""
        return self.storage or str(self.folder / "journal.log")

    def build(self) -> Recipe:
        """Return the recipe with the order's own changes, and settle metric and mode if they were left open.

        Raises:
            UserError: if the recipe cannot be built, or has no folds although they were asked for.
        """
        if self.folds:
            if "fold" in self.search:
                raise UserError(
                    f"search fold, folds={self.folds}: each trial trains every fold, so that none is left to search"
                )
            known = list(inspect.signature(self.factory()).parameters)
            if "fold" not in known:
                raise UserError(
                    f"folds={self.folds}: the recipe has no parameter 'fold', the number of the fold that validates"
                    f"{did_you_mean('fold', known)}; see Data.folds"
                )
        recipe = self.spec({}).build()
        self.metric, self.mode = self._sought(recipe)
        self.callbacks = list(recipe.trainer.get("callbacks") or [])
        return recipe

    def check(self, recipe: Recipe) -> None:
        """Raise what lint finds wrong in the recipe, or warn of it, before many runs are made of it.

        Raises:
            UserError: for an error, if the recipe never logs the metric, or if it has fewer folds than were asked for.
        """
        if self.folds:
            try:
                self.spec({"parameters": {"fold": self.folds - 1}}).build()
            except Exception as error:  # whatever the recipe raises, it has no such fold
                raise UserError(
                    f"folds={self.folds}: the recipe has no fold {self.folds - 1}:"
                    f" {type(error).__name__}: {one_line(error)}; give fewer folds"
                ) from error
        core = recipe.make_core(0, recipe.trainer)
        core.attach_plugins()
        raise_or_warn(lint(recipe, core, recipe.trainer), self.spec({}).name)
        reason = plan_of(recipe, core, recipe.trainer).why_never_logged(str(self.metric), "val", "train", "gap")
        if reason is not None:
            raise UserError(f"metric={self.metric!r}: {reason}")

    def _sought(self, recipe: Recipe) -> tuple[str, str]:
        if self.mode not in (None, "min", "max"):
            raise UserError(f"mode={self.mode!r}: must be 'min' or 'max'")
        metric = self.metric or recipe.monitor
        if metric == recipe.monitor:
            return metric, self.mode or recipe.mode
        higher = higher_is_better(metric.rpartition("/")[2], ways_of(recipe.metrics))
        if self.mode is None and higher is None:
            raise UserError(f"metric={metric!r}: unknown whether more is better; give mode='min' or mode='max'")
        return metric, self.mode or ("max" if higher else "min")

    def factory(self) -> Any:
        """Return the recipe function; a file is imported once, so that what its readers of data cache stays."""
        if self._factory is None:
            self._factory = load_recipe(self.recipe) if isinstance(self.recipe, str | Path) else self.recipe
        return self._factory

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_factory": None, "callbacks": []}  # each worker imports the file

    def spec(self, overrides: Mapping[str, Any]) -> RunSpec:
        """Return the specification of a run with a trial's changes."""
        every = self.overrides(overrides)
        return RunSpec(
            self.factory(),
            None,
            every["parameters"],
            every["trainer"],
            every["settings"],
            every["with_"],
            every["without"],
        )

    def overrides(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the changes to the recipe as arguments of :func:`framework.fit`: the order's own, then a trial's.

        Args:
            chosen: a trial's ``parameters``, ``settings`` and ``without``.
        """
        off = set(chosen.get("without", ()))
        added = [one for one in self.with_ if _name(one) not in off]
        names = {_name(one) for one in self.with_}
        settings = {**self.settings, **chosen.get("settings", {})}
        return {
            "parameters": {**self.parameters, **chosen.get("parameters", {})},
            "trainer": {**_QUIET, **self.trainer},
            "settings": {path: value for path, value in settings.items() if path.rpartition(".")[0] not in off},
            "with_": added,
            "without": [*self.without, *(name for name in chosen.get("without", ()) if name not in names)],
        }

    def runs(self) -> list[tuple[int, int | None]]:
        """Return seed and fold of each run of a trial."""
        folds: list[int | None] = list(range(self.folds)) if self.folds else [None]
        return [(seed, fold) for seed in range(self.seeds) for fold in folds]

    def check_same(self, before: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
        """Check that this is the order of an earlier command on the same study or ablation.

        Args:
            before: what this returned then, None if there was none.
            more: what else must be the same.

        Returns:
            What must not change, as plain data.

        Raises:
            UserError: if something is different, which it names.
        """
        names = ("parameters", "trainer", "settings", "with_", "without", "metric", "mode")
        asked = {"recipe": self.spec({}).name, **{name: plain(getattr(self, name)) for name in names}, **plain(more)}
        if before is not None and before != asked:
            different = [_difference(key, before.get(key), now) for key, now in asked.items() if before.get(key) != now]
            raise UserError(
                f"{self.name!r} in {self.folder.parent} is another one ({'; '.join(different)}); give the same"
                " arguments, or another name"
            )
        return asked


def _difference(key: str, before: Any, now: Any) -> str:
    """Return what changed, without the entries of a list in text that are the same."""
    if isinstance(before, str) and isinstance(now, str):
        old, new = before.split("; "), now.split("; ")
        before = "; ".join(one for one in old if one not in new) or "nothing"
        now = "; ".join(one for one in new if one not in old) or "nothing"
    return f"{key}: {before} → {now}"


def _name(added: Any) -> str:
    return added if isinstance(added, str) else added[0] if isinstance(added, (tuple, list)) else added.name
