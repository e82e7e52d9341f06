"""The list of installed plugins that the command ``plugins`` prints."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import TYPE_CHECKING, Any, get_type_hints

from framework.errors import UserError
from framework.plugin.registry import registered
from framework.report.table import paragraph, table
from framework.settings import plain
from framework.values import type_name

if TYPE_CHECKING:
    from framework.plugin.plugin import Plugin


def catalogue() -> tuple[str, list[str]]:
    """Return the installed plugins as plain text, and one error line for each plugin that cannot be imported."""
    blocks, broken = [], []
    for entry in registered():
        try:
            kind = entry.load()
        except UserError as error:
            broken.append(str(error))
            continue
        parts = [f"{entry.name}  ({entry.distribution})", paragraph(_summary(kind)), table(_settings(kind), indent=4)]
        blocks.append("\n".join(part for part in parts if part))
    if not blocks and not broken:
        return "No plugin is installed; `pip install -e .` in the source tree registers the bundled ones.", []
    return "\n\n".join(blocks), broken


def _settings(kind: type[Plugin]) -> list[list[str]]:
    hints = get_type_hints(kind, include_extras=True)
    rows = []
    for field in dataclasses.fields(kind):
        if field.init and field.name != "name":
            rows.append([field.name, _default(field), type_name(hints[field.name])])
    return rows


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    if field.default is dataclasses.MISSING:
        return "required"
    return str(plain(field.default)) if isinstance(field.default, type) else repr(field.default)


def _summary(kind: type[Plugin]) -> str:
    first = (inspect.getdoc(kind) or "").partition("\n\n")[0]
    return re.sub(r":\w+:`([^`]*)`", r"\1", first).replace("``", "")
