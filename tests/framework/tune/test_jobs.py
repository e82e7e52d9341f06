"""Each run is made once; one that failed leaves its error, and is tried again by the next call."""

from __future__ import annotations

from pathlib import Path

from framework.tune.jobs import Job, ended, error_of, work
from framework.tune.order import Order


def test_runs_are_made_once_and_errors_are_kept(toy: Path, tmp_path: Path) -> None:
    order = Order(toy, logs=tmp_path, parameters={"epochs": 1})
    order.build()
    good = Job(tmp_path / "good", 0, {})
    bad = Job(tmp_path / "bad", 0, {"parameters": {"refuse": 2.0}})
    told: list[Job] = []
    work(order, [good, bad], told.append)
    assert told == [good, bad]
    run = ended(order, good)
    assert run is not None
    assert run.record["memory"] is None or run.record["memory"] >= 0
    assert error_of(good) is None
    assert ended(order, bad) is None
    assert error_of(bad) == "UserError: refuse=2.0: too much"
    told.clear()
    work(order, [good, bad], told.append)
    assert told == [bad]
