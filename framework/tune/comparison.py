"""``compare``: which of several settings is better, on runs that stand on disk."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from framework.errors import UserError, some
from framework.tune.runs import PLUGIN, Trained, differences, runs_in
from framework.tune.statistics import Comparison, compare_pairs
from framework.tune.table import Report, Row


def compare(runs: Iterable[str | Path], *, metric: str | None = None, mode: str | None = None) -> Report:
    """Compare settings by runs that stand on disk, pair by pair: same seed, same fold, same split.

    Runs that differ only by these are one setting; the first of them is what the others are compared with.

    Args:
        runs: folders of runs, or folders that hold runs, such as a study's.
        metric: tag of the figure, None for the monitor of the first run.
        mode: ``"min"`` or ``"max"``, None for what the runs say.

    Returns:
        The table, with methods ``text``, ``markdown``, ``html``, ``csv`` and ``write``.

    Raises:
        UserError: if a folder holds no run, all runs are of one setting, no seed is common to two settings, or the
            metric was never logged.
    """
    every = runs_in(runs)
    metric = metric or str(every[0].record["monitor"])
    higher = higher_of(every[0], metric, mode)
    settings = _settings(every)
    if len(settings) < 2:
        one = f"{len(every)} runs of one setting" if len(every) > 1 else f"one run, {every[0].folder}"
        raise UserError(f"compare: {one}; give runs of at least two settings, such as other plugins")
    names = _names([found[0].setting for found in settings])
    base = settings[0]
    rows = [row_of(name, found, base, metric, higher) for name, found in zip(names[1:], settings[1:], strict=True)]
    if not any(row.found.n for row in rows):
        first, other = (some(list(dict.fromkeys(_words(one) for one in found))) for found in settings[:2])
        raise UserError(
            f"compare: no run of another setting can be paired with one of the first, which are of {first}: {names[1]}"
            f" is of {other}; train the same seeds, folds and splits"
        )
    count = f"{len(base)} runs, first" if len(base) > 1 else "one run,"
    notes = [f"compared with: {names[0]} ({count} {base[0].folder})"]
    notes += _alone(settings, names)
    return report(
        f"{every[0].record['recipe']}: {len(settings)} settings", metric, higher, rows, "first setting", notes
    )


def report(
    title: str, metric: str, higher: bool, rows: Sequence[Row], other: str, notes: Sequence[str], first: str = "this"
) -> Report:
    """Return a report whose p-values are corrected over all of its rows."""
    sign = 1.0 if higher else -1.0
    # by place, since two rows may have the same name where numbers are rounded
    gains = {
        place: [sign * (a - b) for a, b in zip(row.figures, row.others, strict=True)]
        for place, row in enumerate(rows)
        if row.figures
    }
    found = compare_pairs(gains, higher_is_better=True)
    told = tuple(dataclasses.replace(row, found=found.get(place, row.found)) for place, row in enumerate(rows))
    return Report(title, metric, higher, told, (first, other), tuple(notes))


def row_of(name: str, runs: Sequence[Trained], others: Sequence[Trained], metric: str, higher: bool) -> Row:
    """Return the comparison of two settings, of which the report corrects the p-values."""
    second = {one.pair: one for one in others}
    pairs = [(one, second[one.pair]) for one in runs if one.pair in second]
    figures = tuple(one.figure(metric) for one, _ in pairs)
    against = tuple(other.figure(metric) for _, other in pairs)
    if any(not math.isfinite(value) for value in (*figures, *against)):
        raise UserError(f"metric={metric!r}: not finite in a run of {name!r}, which cannot be compared")
    nothing = Comparison(len(pairs), math.nan, math.nan, math.nan, math.nan, 1.0, 1.0, 0.5, None)
    seconds = [one.record["seconds"] / max(other.record["seconds"], 1e-9) for one, other in pairs]
    memory = [
        one.record["memory"] - other.record["memory"]
        for one, other in pairs
        if one.record.get("memory") is not None and other.record.get("memory") is not None
    ]
    note = "" if pairs else "no common seed"
    time = statistics.median(seconds) if seconds else math.nan
    return Row(name, figures, against, nothing, time, statistics.median(memory) if memory else None, note)


def higher_of(run: Trained, metric: str, mode: str | None) -> bool:
    """Return whether more of a metric is better.

    Raises:
        UserError: if nothing says so.
    """
    if mode not in (None, "min", "max"):
        raise UserError(f"mode={mode!r}: must be 'min' or 'max'")
    run.figure(metric)
    higher = run.higher_is_better(metric) if mode is None else mode == "max"
    if higher is None:
        raise UserError(f"metric={metric!r}: unknown whether more is better; give mode='min' or mode='max'")
    return higher


def _settings(every: Sequence[Trained]) -> list[list[Trained]]:
    """Return the runs of each setting, each pair once: the newest counts."""
    groups: list[tuple[dict[str, Any], dict[Any, Trained]]] = []
    for one in every:
        setting = one.setting
        for known, runs in groups:
            if known == setting:
                runs[one.pair] = one
                break
        else:
            groups.append((setting, {one.pair: one}))
    return [list(runs.values()) for _, runs in groups]


def _names(settings: list[dict[str, Any]]) -> list[str]:
    """Return a short name for each setting: in what it differs from the others."""
    names = []
    for whole, found in zip(settings, differences(settings), strict=True):
        plugins = {name.removeprefix(PLUGIN): one for name, one in found.items() if name.startswith(PLUGIN)}
        parts = [
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in found.items()
            if value is not None and not name.startswith(PLUGIN) and name.partition(".")[0] not in plugins
        ]
        missing = [name for name, one in plugins.items() if one is None]
        if plugins:
            parts.append(f"without {', '.join(missing)}" if missing else f"with {', '.join(plugins)}")
        names.append(" ".join(parts) or str(whole["recipe"]))
    return names


def _words(one: Trained) -> str:
    """Return by what a run is paired with others."""
    return " ".join(f"{key} {value}" for key, value in one.pair)


def _alone(settings: Sequence[Sequence[Trained]], names: Sequence[str]) -> list[str]:
    """Return notes on runs that have no partner."""
    base = {one.pair for one in settings[0]}
    notes = []
    for name, found in zip(names[1:], settings[1:], strict=True):
        alone = [_words(one) for one in found if one.pair not in base]
        if alone:
            notes.append(f"{name}: not paired, since {names[0]} has no such run: {some(alone)}")
    return notes
