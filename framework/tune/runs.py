"""Runs on disk: what was trained, with which seed, and what came out."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from framework.checkpoint.folder import ENDED, RunFolder
from framework.errors import UserError, some
from framework.plugin.plan import higher_is_better

# parameters by which runs are paired, as they are by their seeds
SPLITS = ("fold", "split")
PLUGIN = "plugin "  # before a plugin's name among the entries of a setting


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that ended.

    Args:
        folder: its folder.
        record: the content of its ``run.json``.
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def pair(self) -> tuple[tuple[str, Any], ...]:
        """By what it is paired with a run of another setting: seed, fold and split."""
        arguments = self.arguments
        return (("seed", self.record["seed"]), *((name, arguments[name]) for name in SPLITS if name in arguments))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the recipe function; of older runs only those that were given."""
        return dict(self.record.get("arguments") or self.record["parameters"])

    @property
    def setting(self) -> dict[str, Any]:
        """What was trained, as flat entries: recipe, arguments, plugins and their settings, options of the Trainer."""
        entries: dict[str, Any] = {"recipe": self.record["recipe"]}
        entries |= {name: value for name, value in self.arguments.items() if name not in SPLITS}
        for plugin in self.record["plugins"]:
            name = plugin.get("name", plugin["class"])
            entries[PLUGIN + name] = plugin["class"]
            entries |= {f"{name}.{key}": value for key, value in plugin.get("settings", {}).items() if key != "name"}
        options = self.record.get("trainer_options") or {}
        entries |= {f"trainer.{key}": value for key, value in options.items() if not key.startswith("enable_")}
        # of an object only its address is recorded, which is another one in each process
        return {name: value for name, value in entries.items() if " at 0x" not in str(value)}

    def figure(self, metric: str) -> float:
        """Return a metric at the best epoch.

        Raises:
            UserError: if it was never logged.
        """
        found = self.record["metrics"]
        if metric not in found:
            raise UserError(
                f"metric={metric!r}: {self.folder} has none of that name (it has: {', '.join(sorted(found)) or 'none'})"
            )
        return float(found[metric])

    def higher_is_better(self, metric: str) -> bool | None:
        """Return whether more of a metric is better, None if the run does not say."""
        if metric == self.record["monitor"]:
            return bool(self.record["mode"] == "max")
        return higher_is_better(metric.rpartition("/")[2], self.record.get("higher_is_better") or {})


def runs_in(paths: Iterable[str | Path]) -> list[Trained]:
    """Return the runs in folders, each of which is a run's or holds runs; those that did not end are left out.

    Raises:
        UserError: if a folder is missing, or holds no run that ended.
    """
    found: dict[Path, Trained] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"no such folder: {path}")
        files = sorted(path.rglob("run.json"), key=_in_order) if path.is_dir() else []
        ended = [Trained(file.parent, record) for file in files if (record := _record(file)) is not None]
        if not ended:
            unfinished = f"; {len(files)} did not end: {some([str(file.parent) for file in files])}" if files else ""
            raise UserError(f"{path}: no run that ended in it{unfinished}")
        found |= {one.folder.resolve(): one for one in ended}
    return list(found.values())


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Return a key by which version_2 comes before version_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _record(file: Path) -> dict[str, Any] | None:
    try:
        record = RunFolder(file.parent).read()
    except (UserError, json.JSONDecodeError):
        return None
    return record if record.get("status") in ENDED and record.get("metrics") else None


def differences(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of each setting the entries that are not the same in all of them; a missing entry is None.

    Example:
        >>> differences([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}])
        [{'b': 2, 'c': None}, {'b': 3, 'c': 4}]
    """
    names = dict.fromkeys(name for one in settings for name in one)
    differing = [name for name in names if any(one.get(name) != settings[0].get(name) for one in settings)]
    return [{name: one.get(name) for name in differing} for one in settings]
