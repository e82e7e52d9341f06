"""A table of comparisons, as text, Markdown, CSV and one HTML file that opens offline."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import math
from pathlib import Path

from framework.report.table import table
from framework.tune.statistics import Comparison

_LABEL = 32  # characters of a row's name in the picture


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison of a table.

    Args:
        name: what is compared.
        figures: figures of the first of each pair.
        others: figures of the second of each pair.
        found: what the differences, first minus second, say; more is better.
        seconds: seconds that a run of the first takes, over one of the second.
        memory: bytes of memory that a run of the first takes, minus one of the second; None if not measured.
        note: what could not be compared, and why.
    """

    name: str
    figures: tuple[float, ...]
    others: tuple[float, ...]
    found: Comparison
    seconds: float
    memory: float | None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """A table of comparisons of one metric.

    Args:
        title: heading.
        metric: tag of the metric.
        higher_is_better: whether more of it is better.
        rows: the comparisons.
        columns: names of the first and the second of each pair.
        notes: what else to know.
        folder: where the compared runs stand.
    """

    title: str
    metric: str
    higher_is_better: bool
    rows: tuple[Row, ...]
    columns: tuple[str, str]
    notes: tuple[str, ...] = ()
    folder: Path = Path()

    header = (
        "gain (middle half)",
        "95 % interval",
        "P(better)",
        "p (Holm)",
        "pairs",
        "verdict",
        "seeds needed",
        "time",
        "memory",
    )

    def cells(self, row: Row) -> list[str]:
        """Return a row's cells as text."""
        one = row.found
        interval = "" if math.isnan(one.low) else f"{one.low:+.4g} .. {one.high:+.4g}"
        memory = "" if row.memory is None else f"{row.memory / 2**20:+.3g} MiB"
        return [
            row.name,
            _mean(row.figures),
            _mean(row.others),
            f"{one.mean:+.4g} ({one.middle:+.4g})",
            interval,
            f"{one.better:.2f}",
            f"{one.adjusted:.3f}",
            str(one.n),
            row.note or one.verdict(higher_is_better=True),
            f"about {one.missing} more" if one.missing else "",
            f"x {row.seconds:.2f}" if math.isfinite(row.seconds) else "",
            memory,
        ]

    def text(self) -> str:
        """Return the report for a terminal, without the columns that do not fit."""
        rows = []
        for row in self.rows:
            cells = dict(zip(["", *self._head()], self.cells(row), strict=True))
            verdict = cells["verdict"] + (f", +{row.found.missing} seeds" if row.found.missing else "")
            gain = f"{row.found.mean:+.4g}"
            rows.append(
                [row.name, gain, cells["95 % interval"], cells["pairs"], verdict, cells["time"], cells["memory"]]
            )
        head = ["", "gain", "95 % interval", "pairs", "verdict", "time", "memory"]
        return "\n".join([self.title, self._about(), table(rows, head), *self.notes])

    def markdown(self) -> str:
        """Return the report as Markdown."""
        head = ["", *self._head()]
        lines = [f"# {self.title}", "", self._about(), "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        lines += [f"| {' | '.join(self.cells(row))} |" for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]) + "\n"

    def csv(self) -> str:
        """Return the single figures: a line a pair."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["comparison", "pair", *self.columns, "difference"])
        for row in self.rows:
            for index, (a, b) in enumerate(zip(row.figures, row.others, strict=True)):
                writer.writerow([row.name, index, repr(a), repr(b), repr(a - b)])
        return out.getvalue()

    def html(self) -> str:
        """Return the report as one page with its picture inside."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ["", *self._head()])
        body = "".join(f"<tr>{_cells(self.cells(row), row)}</tr>" for row in self.rows)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return _PAGE.format(
            title=html.escape(self.title),
            about=html.escape(self._about()),
            picture=_forest(self.rows),
            head=head,
            body=body,
            notes=f"<ul>{notes}</ul>" if notes else "",
        )

    def write(self, folder: Path) -> list[Path]:
        """Write ``report.md``, ``report.html`` and ``report.csv`` into a folder, and return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"report.md": self.markdown(), "report.html": self.html(), "report.csv": self.csv()}
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in texts]

    def _head(self) -> list[str]:
        return [*self.columns, *self.header]

    def _about(self) -> str:
        better = "higher" if self.higher_is_better else "lower"
        return f"{self.metric} at the best epoch; {better} is better, a gain above 0 is an improvement"


def _mean(values: tuple[float, ...]) -> str:
    return f"{math.fsum(values) / len(values):.4g}" if values else ""


def _cells(cells: list[str], row: Row) -> str:
    kind = ("good" if row.found.mean > 0 else "bad") if row.found.told_apart else "open"
    return "".join(f'<td class="{kind if i == 8 else ""}">{html.escape(cell)}</td>' for i, cell in enumerate(cells))


def _forest(rows: tuple[Row, ...]) -> str:
    """Return a picture of the intervals: a line a row, a dot at the mean, a vertical line at no difference."""
    shown = [row for row in rows if row.found.n and math.isfinite(row.found.mean)]
    if not shown:
        return ""
    ends = [0.0]
    for row in shown:
        ends += [one for one in (row.found.low, row.found.high, row.found.mean) if math.isfinite(one)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    left, width, step = 240, 460, 26

    def x(value: float) -> float:
        return left + width * (value - low) / span

    height = step * len(shown) + 40
    parts = [f'<line x1="{x(0):.1f}" y1="8" x2="{x(0):.1f}" y2="{height - 26}" class="zero"/>']
    for index, row in enumerate(shown):
        y, one = step * index + 20, row.found
        kind = ("good" if one.mean > 0 else "bad") if one.told_apart else "open"
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{html.escape(_short(row.name))}</text>')
        if math.isfinite(one.low):
            parts.append(f'<line x1="{x(one.low):.1f}" y1="{y}" x2="{x(one.high):.1f}" y2="{y}" class="{kind}"/>')
        parts.append(f'<circle cx="{x(one.mean):.1f}" cy="{y}" r="4" class="{kind}"/>')
    for value in (low, high):
        parts.append(f'<text x="{x(value):.1f}" y="{height - 8}" text-anchor="middle">{value:+.3g}</text>')
    return f'<svg viewBox="0 0 740 {height}" role="img">{"".join(parts)}</svg>'


def _short(name: str) -> str:
    return name if len(name) <= _LABEL else f"{name[: _LABEL - 1]}…"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --good: #14804a; --bad: #c0392b; --open: #7a8594; --line: #8884; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }}
th {{ font-weight: 600; vertical-align: bottom; }}
td:first-child, th:first-child, td:nth-child(9), th:nth-child(9) {{ text-align: left; }}
td.good {{ color: var(--good); font-weight: 600; }} td.bad {{ color: var(--bad); font-weight: 600; }}
td.open {{ color: var(--open); }} td:not(:first-child) {{ white-space: nowrap; }}
.scroll {{ overflow-x: auto; }}
svg {{ width: 100%; max-width: 740px; font: 12px system-ui, sans-serif; fill: currentColor; }}
svg line {{ stroke: var(--open); stroke-width: 2; }} svg line.zero {{ stroke: var(--line); stroke-width: 1; }}
svg .good {{ fill: var(--good); stroke: var(--good); }} svg .bad {{ fill: var(--bad); stroke: var(--bad); }}
svg circle.open {{ fill: var(--open); }}
</style></head><body>
<h1>{title}</h1><p>{about}</p>
{picture}
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
{notes}
</body></html>
"""
