"""A report is told as text, Markdown, CSV and a page that needs nothing else."""

from __future__ import annotations

import csv
import math
import xml.etree.ElementTree as ET
from pathlib import Path

from framework.tune.statistics import Comparison, compare_pairs
from framework.tune.table import Report, Row

GAINS = [0.1, 0.12, 0.09, 0.11, 0.13, 0.1, 0.12, 0.11]


def report() -> Report:
    found = compare_pairs({"good": GAINS}, higher_is_better=True)["good"]
    nothing = Comparison(0, math.nan, math.nan, math.nan, math.nan, 1.0, 1.0, 0.5, None)
    rows = (
        Row("a < b", tuple(1 - gain for gain in GAINS), tuple(1.0 for _ in GAINS), found, 1.5, 2.0**20),
        Row("c", (), (), nothing, math.nan, None, "no common seed"),
    )
    return Report("What | helps", "val/loss", False, rows, ("with", "without"), ("a note & more",))


def test_forms(tmp_path: Path) -> None:
    paths = report().write(tmp_path)
    assert [path.suffix for path in paths] == [".md", ".html", ".csv"]
    page = paths[1].read_text()
    assert "a &lt; b" in page
    assert "a note &amp; more" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    picture = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert len(picture.findall("circle")) == 1
    with paths[2].open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8
    assert float(lines[0]["difference"]) == (1 - 0.1) - 1.0
    text = paths[0].read_text()
    assert "| no common seed |" in text
    assert "| better |" in text
    assert "| x 1.50 | +1 MiB |" in text
    assert text.count("\n| ") == 3
    assert max(map(len, report().text().splitlines())) <= 120
