"""Killed workers are replaced, and no trial is lost, counted twice or changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework import UserError
from framework.tune import tune
from tests.kills import compare

CACHED = """
import functools


@functools.cache
def read():
    with open(READS, "a") as file:
        print("read", file=file)
    return torch.randn(96, 4, generator=torch.Generator().manual_seed(0))


"""


@pytest.mark.slow
def test_killed_workers_change_nothing() -> None:
    kills, different = compare(kills=8, workers=3, trials=12, epochs=40, rest=0.7)
    assert kills >= 4
    assert different == []


@pytest.mark.slow
def test_the_error_of_a_worker_ends_the_study(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study 'study': a worker ended with an error, see above"):
        tune(toy, trials=30, workers=2, search={"refuse": "2,3"}, logs=tmp_path)


@pytest.mark.slow
def test_a_worker_reads_cached_data_once(toy: Path, tmp_path: Path) -> None:
    text = toy.read_text().replace("def recipe(", CACHED + "def recipe(", 1)
    text = text.replace("x = torch.randn(96, 4, generator=torch.Generator().manual_seed(fold or 0))", "x = read()")
    path, count = tmp_path / "cached_recipe.py", tmp_path / "reads.txt"
    path.write_text(text.replace("READS", repr(str(count))))
    tune(path, trials=6, workers=2, logs=tmp_path)
    assert len(count.read_text().splitlines()) == 3  # two workers and this process
