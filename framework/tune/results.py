"""A study and what it found: trials, the best of them, importances, the file of the chosen settings."""

from __future__ import annotations

import statistics
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.checkpoint.folder import RunFolder
from framework.recipe.changes import write_changes
from framework.report.table import table
from framework.tune.order import Order
from framework.tune.space import Space
from framework.tune.trial import folder_of

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_SHOWN = 5
_FEW = 8  # trials below which importances say nothing


class Study:
    """A study: what :func:`framework.tune.tune` returns.

    Args:
        order: what it was asked to do.
        space: what it searches.
        study: Optuna's study, with all of its methods.

    Attributes:
        order, space, study: as given.
        refitted: folder of the run on training and validation parts together, None without ``refit``.
    """

    def __init__(self, order: Order, space: Space, study: optuna.Study) -> None:
        self.order, self.space, self.study = order, space, study
        self.refitted: Path | None = None

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, of which some may not have ended."""
        return self.study.get_trials(deepcopy=False)

    def ended(self) -> list[FrozenTrial]:
        """Return the trials that ended: completed, given up or failed."""
        return [one for one in self.trials if one.state.is_finished()]

    def ranking(self) -> list[FrozenTrial]:
        """Return the completed trials, best first; of equal ones the earlier first."""
        from optuna.trial import TrialState

        done = [one for one in self.trials if one.state == TrialState.COMPLETE]
        sign = -1.0 if self.order.mode == "max" else 1.0
        return sorted(done, key=lambda one: (sign * float(one.value or 0.0), one.number))

    @property
    def best(self) -> FrozenTrial | None:
        """The completed trial with the best figure, None if there is none."""
        return next(iter(self.ranking()), None)

    def chosen(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return what a trial changes in the recipe: ``parameters``, ``settings``, ``without``."""
        return dict(trial.user_attrs["chosen"])

    def runs(self, trial: FrozenTrial) -> list[Path]:
        """Return the folders of a trial's runs; none if they are on another machine."""
        name = self.order.spec({}).name
        folder = folder_of(self.order, trial.number)
        logs = sorted(folder.iterdir()) if folder.is_dir() else []
        return [found.path for one in logs if one.is_dir() for found in RunFolder.all(one, name)[:1]]

    @property
    def settings_file(self) -> Path:
        """The file of the chosen settings, for ``fit RECIPE --settings FILE``."""
        return self.order.folder / "best.yaml"

    def write_settings(self) -> Path:
        """Write the chosen settings to :attr:`settings_file`."""
        best = self.best
        assert best is not None
        about = f"trial {best.number} of {len(self.ended())}: {self.order.metric} {best.value:.6g}"
        self.settings_file.parent.mkdir(parents=True, exist_ok=True)
        changes = {**self.order.overrides(self.chosen(best)), "trainer": self.order.trainer}
        write_changes(self.settings_file, changes, about)
        return self.settings_file

    def importances(self) -> dict[str, float]:
        """Return the share of each setting in the difference between the best tenth of the trials and all (PED-ANOVA).

        Empty if fewer than eight trials completed, or all are equal.

        Source: Watanabe, Bansal and Hutter (2023), PED-ANOVA: Efficiently quantifying hyperparameter importance in
        arbitrary subspaces.
        """
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        if len(self.ranking()) < _FEW:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of being experimental
            try:
                return get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator())
            except (RuntimeError, ValueError):  # no setting is common to all trials
                return {}

    def tested(self) -> dict[str, list[float]]:
        """Return the chosen trial's metrics on the test part by tag, one of each run; empty before the end."""
        found: dict[str, Any] = self.study.user_attrs.get("tested") or {}
        best = self.best
        return dict(found["metrics"]) if found and best is not None and found["trial"] == best.number else {}

    def summary(self) -> str:
        """Return the result as text: best trials, importances, test metrics, the file of settings, the next command."""
        from optuna.trial import TrialState

        counts = {state: sum(one.state == state for one in self.trials) for state in TrialState}
        words = {TrialState.COMPLETE: "completed", TrialState.PRUNED: "given up early", TrialState.FAIL: "failed"}
        words[TrialState.RUNNING] = "still running elsewhere"
        parts = [f"{counts[state]} {word}" for state, word in words.items() if counts[state]]
        lines = [f"study {self.order.name}: {', '.join(parts) or 'no trial ended'}", f"in {self.order.folder}"]
        if self.best is None:
            return "\n".join([*lines, *self._errors()])
        lines += ["", table(self._best_rows(), ["trial", str(self.order.metric), "settings"])]
        if found := self.importances():
            rows = [[name, f"{share:.0%}"] for name, share in found.items()]
            lines += ["", table(rows, ["setting", "importance"])]
        if tested := self.tested():
            lines += ["", f"trial {self.best.number} on the test part (touched for it alone):"]
            lines.append(table([[tag, spread(values)] for tag, values in sorted(tested.items())]))
        elif not self.runs(self.best):
            lines += [
                "",
                f"trial {self.best.number} was trained on another machine, which tests it when the study ends",
            ]
        lines += [
            *self._errors(),
            "",
            f"train it: python -m framework fit {self._recipe()} --settings {self.settings_file}",
        ]
        if self.refitted is not None:
            lines.append(f"refitted on all the data: {self.refitted}")
        return "\n".join(lines)

    def _recipe(self) -> str:
        given = self.order.recipe
        return str(given) if isinstance(given, str | Path) else "RECIPE"

    def _errors(self) -> list[str]:
        failed = [one for one in self.trials if "error" in one.user_attrs]
        return [f"trial {one.number} failed: {one.user_attrs['error']}" for one in failed[-3:]]

    def _best_rows(self) -> list[list[str]]:
        rows = []
        for one in self.ranking()[:_SHOWN]:
            rows.append([str(one.number), spread(one.user_attrs["values"]), describe(self.chosen(one))])
        return rows


def spread(values: list[float]) -> str:
    """Return the mean, with the standard deviation over runs where there are several.

    Example:
        >>> spread([1.0, 2.0, 3.0]), spread([0.25])
        ('2 ± 1', '0.25')
    """
    mean = f"{statistics.fmean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


def describe(chosen: dict[str, Any]) -> str:
    """Return a trial's choice in one line.

    Example:
        >>> describe({"parameters": {"width": 64}, "settings": {"sam.rho": 0.0512345}, "without": ["mixup"]})
        'width=64 sam.rho=0.05123 without mixup'
    """
    values = {**chosen["parameters"], **chosen["settings"]}
    parts = [f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()]
    return (
        " ".join([*parts, *(["without " + ",".join(chosen["without"])] if chosen["without"] else [])])
        or "the recipe as it is"
    )
