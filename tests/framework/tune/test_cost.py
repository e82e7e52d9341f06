"""A dry run prints the space and the cost of a trial, and writes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from framework.tune.cost import dry


def test_space_and_cost(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = dry(toy, search={"kind": "tanh,relu"}, cocktail=True, seeds=3)
    for line in (r"width +4\.\.32 \(log\) +8", r"kind +tanh, relu +tanh", r"norm_penalty +on, off +on"):
        assert re.search(line, text)
    assert "a trial: 3 x 2 epochs of at most " in text
    assert list(tmp_path.iterdir()) == []
