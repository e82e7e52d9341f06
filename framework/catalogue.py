"""The list of installed plugins."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, get_type_hints

from framework.errors import UserError
from framework.registry import registered
from framework.table import paragraph, table
from framework.value import type_name

if TYPE_CHECKING:
    from framework.plugin import Plugin


def catalogue() -> tuple[str, list[str]]:
    """Return the list as plain text, and one line for each plugin that cannot be imported."""
    blocks, broken = [], []
    for entry in registered():
        try:
            kind = entry.load()
        except UserError as error:
            broken.append(str(error))
            continue
        summary = paragraph((inspect.getdoc(kind) or "").partition("\n\n")[0])
        parts = [f"{entry.name}  ({entry.distribution})", summary, table(_settings(kind), indent=4)]
        blocks.append("\n".join(part for part in parts if part))
    if not blocks and not broken:
        return "No plugin is installed; `pip install -e .` in the source tree registers the bundled ones.", []
    return "\n\n".join(blocks), broken


def _settings(kind: type[Plugin]) -> list[list[str]]:
    hints = get_type_hints(kind)
    rows = []
    for field in dataclasses.fields(kind):
        if field.init and field.name != "name":
            if field.default_factory is not dataclasses.MISSING:
                default = repr(field.default_factory())
            else:
                default = "required" if field.default is dataclasses.MISSING else repr(field.default)
            rows.append([field.name, default, type_name(hints[field.name])])
    return rows
