"""Print results of checks: those of one plugin, or a table of plugins and checks."""

from __future__ import annotations

import dataclasses
import importlib
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from framework.errors import UserError, did_you_mean
from framework.plugin.plugin import Plugin
from framework.plugin.registry import find_plugin, registered
from framework.recipe.edits import read_fields
from framework.report.table import WIDTH, paragraph, table
from framework.testing.battery import CHECKS
from framework.testing.case import cases_of
from framework.testing.result import Check, Result, Status

_MARKS = {
    Status.FAILS: ("X", "FAILS", "fails"),
    Status.LIMITED: ("l", "limit", "cannot hold, as the plugin declares; the measured deviation in brackets"),
    Status.REFUSED: ("r", "refused", "the plugin refuses, with a reason"),
    Status.HOLDS: ("+", "holds", "holds"),
    Status.INAPPLICABLE: (".", "no claim", "does not apply to this plugin"),
}


def claims() -> str:
    """Return a table of all checks and their claims."""
    return table([[check.name, check.claim] for check in CHECKS])


def chosen(names: Sequence[str]) -> Sequence[Check]:
    """Return the checks with these names, all checks if there are none.

    Raises:
        UserError: if there is no check of a name.
    """
    known = {check.name: check for check in CHECKS}
    for name in names:
        if name not in known:
            raise UserError(f"no such check: {name!r}{did_you_mean(name, known)}")
    return [known[name] for name in names] or CHECKS


def split_target(target: str) -> tuple[str, str]:
    """Split a target into the plugin, by registered name or as ``module:Class``, and its settings.

    Example:
        >>> split_target("sam:rho=0.1"), split_target("a.b:Mine"), split_target("a.b:Mine:rho=0.1,adaptive=true")
        (('sam', 'rho=0.1'), ('a.b:Mine', ''), ('a.b:Mine', 'rho=0.1,adaptive=true'))
    """
    first, _, rest = target.partition(":")
    second, _, settings = rest.partition(":")
    return (first, rest) if "=" in second or not rest else (f"{first}:{second}", settings)


def plugin_class(name: str) -> type[Plugin]:
    """Return the plugin class of a registered name or of ``module:Class``.

    Raises:
        UserError: if there is no such plugin class.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        return find_plugin(name)
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"check {name}: {error}; write it as module:Class, importable from here") from error
    if not (isinstance(kind, type) and issubclass(kind, Plugin)):
        raise UserError(f"check {name}: not a subclass of framework.Plugin; name a plugin class")
    return kind


def check_one(name: str, fields: Mapping[str, Any], checks: Sequence[Check]) -> int:
    """Print the result of each check of one plugin and return the exit code.

    Args:
        name: registered name or ``module:Class``.
        fields: settings that override those of the first example; all examples are checked if it is empty.
        checks: the checks to run.
    """
    kind = plugin_class(name)
    settings = read_fields(kind, fields, f"check {name}") if fields else None
    failed = False
    for case in cases_of(kind, settings):
        print(case)
        for check in checks:
            result = check(case)
            failed |= result.status is Status.FAILS
            head = f"  {check.name:9}  {_MARKS[result.status][1]:8}  "
            text = f"{check.claim}: {result.text}"
            print(textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)), flush=True)
    return int(failed)


def check_every(checks: Sequence[Check]) -> int:
    """Print a table of all installed plugins and checks, then the reasons, and return the exit code."""
    plugins = registered()
    width = max((len(plugin.name) for plugin in plugins), default=0)
    print(" ".join(["plugin".ljust(width), *(check.name for check in checks)]))
    results: list[Result] = []
    for plugin in plugins:
        cases = cases_of(plugin.load())
        found = {check.name: [check(case) for case in cases] for check in checks}
        cells = [_marks(found[check.name]).ljust(len(check.name)) for check in checks]
        print(" ".join([plugin.name.ljust(width), *cells]).rstrip(), flush=True)
        results += [
            dataclasses.replace(result, case=plugin.name) if len({r.text for r in row}) == 1 else result
            for row in found.values()
            for result in row
        ]
    print("\n" + table([[mark, text] for mark, _, text in _MARKS.values()]))
    for status in (Status.FAILS, Status.LIMITED, Status.REFUSED, Status.INAPPLICABLE):
        lines = list(_reasons(result for result in results if result.status is status))
        if lines:
            print("\n".join([f"\n{_MARKS[status][0]}  {_MARKS[status][2]}", *lines]))
    return int(any(result.status is Status.FAILS for result in results))


def _marks(results: Iterable[Result]) -> str:
    statuses = {result.status for result in results}
    return "".join(_MARKS[status][0] for status in Status if status in statuses)


def _reasons(results: Iterable[Result]) -> Iterator[str]:
    """Yield one paragraph for each check and reason, with the cases that share it."""
    shared: dict[tuple[str, str], list[str]] = {}
    for result in results:
        cases = shared.setdefault((result.check, result.text), [])
        if result.case not in cases:
            cases.append(result.case)
    for (check, text), cases in shared.items():
        yield paragraph(f"{check}: {text}: {', '.join(cases)}")
