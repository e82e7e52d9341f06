"""Tables and paragraphs as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 120


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), *, width: int = WIDTH, indent: int = 2) -> str:
    """Format rows as aligned columns; the widest columns are wrapped until the table fits the width.

    Args:
        rows: cells by row; every row has the same number of cells.
        header: the columns' names; empty for no header.
        width: maximal number of characters of a line.
        indent: number of spaces in front of each line.

    Example:
        >>> print(table([["alpha", "0.001"], ["p", "2"]], ["setting", "value"]))
          setting  value
          alpha    0.001
          p        2
    """
    lines = [list(row) for row in ([header, *rows] if header else rows)]
    if not lines:
        return ""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    room = width - indent - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    out = []
    for cells in lines:
        wrapped = [_wrap(cell, size) for cell, size in zip(cells, widths, strict=True)]
        for index in range(max(map(len, wrapped))):
            parts = [part[index] if index < len(part) else "" for part in wrapped]
            line = "  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True))
            out.append((" " * indent + line).rstrip())
    return "\n".join(out)


def paragraph(text: str, *, width: int = WIDTH, indent: int = 2) -> str:
    """Wrap text into lines of at most ``width`` characters."""
    space = " " * indent
    return textwrap.fill(" ".join(text.split()), width, initial_indent=space, subsequent_indent=space)


def _wrap(cell: str, size: int) -> list[str]:
    return textwrap.wrap(cell, max(size, 1), break_on_hyphens=False) or [""]
