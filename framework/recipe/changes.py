"""Changes to a recipe in a file: what ``tune`` found, and what ``fit RECIPE --settings FILE`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from framework.errors import UserError, did_you_mean, one_line
from framework.settings import plain
from framework.values import as_text

# the names in the file, and the arguments of `fit` that they are
_ENTRIES = {
    "parameters": "parameters",
    "settings": "settings",
    "with": "with_",
    "without": "without",
    "trainer": "trainer",
}


def write_changes(path: Path, changes: Mapping[str, Any], about: str) -> None:
    """Write changes to a recipe as YAML.

    Args:
        path: the file.
        changes: arguments of :func:`framework.fit`: ``parameters``, ``settings``, ``with_``, ``without``, ``trainer``.
        about: first line of the file.
    """
    kept = {entry: plain(changes[name]) for entry, name in _ENTRIES.items() if changes.get(name)}
    path.write_text(f"# {about}\n{yaml.safe_dump(kept, sort_keys=False)}", encoding="utf-8")


def read_changes(path: str | Path) -> dict[str, Any]:
    """Return the changes in a file as arguments of :func:`framework.fit`.

    Args:
        path: a YAML file with some of ``parameters``, ``settings``, ``with``, ``without`` and ``trainer``.

    Raises:
        UserError: if it cannot be read, or has other entries.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"settings {path}: cannot be read: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"settings {path}: must be a mapping with some of {', '.join(_ENTRIES)}")
    for entry, value in found.items():
        if entry not in _ENTRIES:
            raise UserError(f"settings {path}: no such entry: {entry}{did_you_mean(str(entry), list(_ENTRIES))}")
        kind = list if entry in ("with", "without") else dict
        if not isinstance(value, kind):
            raise UserError(f"settings {path}: {entry} must be a {'list' if kind is list else 'mapping'}")
    changes: dict[str, Any] = {_ENTRIES[entry]: value for entry, value in found.items()}
    for name in ("parameters", "settings"):  # text may stand for a number, as it did where the command line gave it
        if name in changes:
            changes[name] = as_text(changes[name])
    if "with_" in changes:
        changes["with_"] = [one if isinstance(one, str) else (one[0], as_text(one[1])) for one in changes["with_"]]
    return changes
