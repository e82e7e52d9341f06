"""The commands that answer by many runs, ``tune``, ``ablate`` and ``compare``: their flags, and what they print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.cli.plain import parse_plain
from framework.errors import UserError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from framework.tune.results import Study

PROG = "python -m framework"
COMMANDS = {
    "tune": "search settings of plugins and parameters of a recipe",
    "ablate": "what each plugin of a recipe is good for, over seeds",
    "compare": "which of several settings is better, by runs that stand on disk",
}
_TUNE = {
    "--trials": ("N", "number of trials; default 20 without another budget"),
    "--minutes": ("M", "begin no trial after M minutes"),
    "--total-epochs": ("N", "begin no trial after N epochs, all trials together"),
    "--search": ("NAME=RANGE", "search a setting or parameter: weight_noise.std=1e-3..1e-1, width=64,128"),
    "--cocktail": ("", "search also which plugins are used"),
    "--workers": ("N", "processes that train trials at the same time; default 1"),
    "--seeds": ("N", "runs of each trial with different seeds; default 1"),
    "--folds": ("K", "validation folds of each trial, for a recipe with a parameter fold"),
    "--metric": ("TAG", "the figure that is sought; default the recipe's monitor"),
    "--mode": ("min|max", "whether less or more of it is better; default by the metric"),
    "--prune": ("KIND", "give up trials early: median, asha, hyperband or wilcoxon; default none"),
    "--sampler": ("tpe|random", "how settings are chosen; default tpe"),
    "--study": ("NAME", "name of the study; the same command goes on with it; default study"),
    "--storage": ("ADDRESS", "storage for many machines: postgresql://…, sqlite:///FILE, grpc://HOST:PORT"),
    "--refit": ("", "train the chosen settings on training and validation parts together"),
    "--dry": ("", "print the space and the cost of a trial, and train nothing"),
}
_ABLATE = {
    "--seeds": ("N", "number of seeds; default 8"),
    "--metric": _TUNE["--metric"],
    "--mode": _TUNE["--mode"],
    "--keep": ("PLUGIN", "leave this plugin in every run"),
    "--not-alone": ("", "only leave plugins out, do not train each alone"),
    "--workers": ("N", "processes that train at the same time; default 1"),
    "--name": ("NAME", "name of the ablation; the same command goes on with it; default ablation"),
}
FLAGS: dict[str, dict[str, tuple[str, str]]] = {"tune": _TUNE, "ablate": _ABLATE}
KINDS: dict[str, dict[str, Any]] = {
    **{flag: {"type": int} for flag in ("--trials", "--total-epochs", "--workers", "--seeds", "--folds")},
    "--minutes": {"type": float},
    **{flag: {"action": "append"} for flag in ("--search", "--keep")},
    **{flag: {"action": "store_true"} for flag in ("--cocktail", "--refit", "--dry", "--not-alone")},
}
_FIELDS = {"total_epochs": "epochs", "study": "name"}


def run(command: str, path: str, overrides: Mapping[str, Any]) -> int:
    """Run ``tune`` or ``ablate``.

    Args:
        command: which of them.
        path: path of the recipe.
        overrides: flags by name.
    """
    given = dict(overrides)
    return _tune(path, given) if command == "tune" else _ablate(path, given)


def _tune(path: str, given: dict[str, Any]) -> int:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError("tune needs the package optuna; install the extra tune: pip install 'jtilde[tune]'") from error
    from framework.tune import tune
    from framework.tune.cost import dry

    given = {_FIELDS.get(name, name): value for name, value in given.items()}
    ranges = [_range(text) for text in given.get("search") or []]
    if twice := next((name for place, (name, _) in enumerate(ranges) if name in dict(ranges[:place])), None):
        raise UserError(f"--search {twice}: given twice; give one range")
    given["search"] = dict(ranges)
    if given.pop("dry", False):
        print(dry(path, **given))
        return 0
    lines = Lines()
    study = tune(path, **given, tell=lines)
    lines.end()
    print(study.summary())
    if study.best is None:
        raise UserError("tune: no trial completed; see the errors above, or give a larger budget")
    return 0


def _ablate(path: str, given: dict[str, Any]) -> int:
    from framework.tune import ablate

    given["alone"] = not given.pop("not_alone", False)
    result = ablate(path, **given, tell=lambda line: print(line, flush=True))
    print(f"\n{result.text()}")
    print(f"\nreport: {result.folder / 'report.html'}")
    return 0


def compare(args: list[str]) -> int:
    """Run ``compare RUN...``."""
    parser = argparse.ArgumentParser(
        prog=f"{PROG} compare", description=f"{COMMANDS['compare'].capitalize()}.", exit_on_error=False
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder of a run, or one that holds runs")
    parser.add_argument("--metric", help="the figure; default the monitor of the first run")
    parser.add_argument("--mode", help="whether less or more of it is better; default by the metric")
    parser.add_argument("--out", metavar="DIR", help="write report.md, report.html and report.csv into this folder")
    given = parse_plain("compare", parser, args)
    if not given.runs:
        raise UserError(f"the runs come first: {PROG} compare RUN RUN [flags]")
    from framework.tune import compare as compare_runs

    result = compare_runs(given.runs, metric=given.metric, mode=given.mode)
    print(result.text())
    if given.out is not None:
        print(f"\nreport: {result.write(Path(given.out))[1]}")
    return 0


def _range(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise UserError(f"--search {text}: write it as NAME=LOW..HIGH or NAME=A,B,C")
    return name.strip(), value.strip()


class Lines:
    """Prints a line a trial; on a terminal also how far the study is, in one line that stays in place."""

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Print a trial that ended."""
        from framework.tune.results import describe, spread

        state = {"COMPLETE": "", "PRUNED": "given up at ", "FAIL": "failed: "}[trial.state.name]
        values = trial.user_attrs.get("values") or ([trial.value] if trial.value is not None else [])
        what = trial.user_attrs.get("error", "") if trial.state.name == "FAIL" else spread(values) if values else ""
        best = study.best
        mark = " *" if best is not None and best.number == trial.number else ""
        live = sys.stdout.isatty()
        chosen = describe(trial.user_attrs["chosen"]) if "chosen" in trial.user_attrs else ""
        clear = "\r\x1b[K" if live else ""
        print(f"{clear}trial {trial.number:>3}  {state}{what}{mark}  {chosen}", flush=True)
        if live and best is not None:
            running = sum(one.state.name == "RUNNING" for one in study.trials)
            print(
                f"{len(study.ended())} ended, {running} running, best {best.value:.4g} (trial {best.number})",
                end="",
                flush=True,
            )

    def end(self) -> None:
        """Leave the line that stays in place."""
        print("\r\x1b[K" if sys.stdout.isatty() else "")
