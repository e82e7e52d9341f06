"""The logger of a run's curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from framework.checkpoint import curves
from framework.checkpoint.curves import Curves
from framework.checkpoint.events import sizes_of
from tests.traces import curves_of


def records_in(folder: Path) -> int:
    (path,) = folder.glob("events.out.tfevents*")
    return len(list(RawEventFileLoader(str(path)).Load()))


def test_it_writes_what_lightnings_logger_writes(tmp_path: Path) -> None:
    calls = [({"loss": 0.1, "lr": 1}, 0), ({"loss": 1e-30, "nan": math.nan, "inf": -math.inf}, 3), ({}, 4)]
    for kind in (Curves, TensorBoardLogger):
        logger = kind(tmp_path, name="", version=kind.__name__)
        for values, step in calls:
            logger.log_metrics(values, step)
        logger.log_metrics({"tensor": torch.tensor(2.5)}, 5)
        logger.finalize("success")
    ours, theirs = (curves_of(tmp_path / kind.__name__) for kind in (Curves, TensorBoardLogger))
    assert repr(ours) == repr(theirs)
    assert {tag.rpartition("/")[2] for tag in ours} == {"loss", "lr", "nan", "inf", "tensor"}


def test_all_values_of_a_step_are_one_record(tmp_path: Path) -> None:
    logger = Curves(tmp_path, name="", version="run")
    for step in range(3):
        logger.log_metrics({"a": 1.0, "b": 2.0}, step)
        logger.log_metrics({"c": 3.0}, step)
    logger.finalize("success")
    assert records_in(tmp_path / "run") == 4, "and the file's own"


def test_a_value_that_is_given_again_is_kept_twice(tmp_path: Path) -> None:
    logger = Curves(tmp_path, name="", version="run")
    for value in (1.0, 2.0):
        logger.log_metrics({"a": value, "b": 0.0}, 7)
    logger.finalize("failed")
    assert curves_of(tmp_path / "run")["./scalars/a"] == [(7, {"value": 1.0}), (7, {"value": 2.0})]


@pytest.mark.parametrize("what", [Curves.flush, Curves.save, lambda logger: sizes_of(Path(logger.log_dir), [logger])])
def test_nothing_waits_longer_than_asked(what: Callable[[Curves], Any], tmp_path: Path) -> None:
    logger = Curves(tmp_path, name="", version="run")
    logger.log_metrics({"a": 1.0}, 1)
    what(logger)
    assert curves_of(tmp_path / "run")["./scalars/a"] == [(1, {"value": 1.0})]
    logger.log_metrics({"b": 1.0}, 1)
    logger.finalize("success")
    assert "./scalars/b" in curves_of(tmp_path / "run")


def test_the_time_is_that_of_the_first_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Curves(tmp_path, name="", version="run")
    monkeypatch.setattr(curves, "time", SimpleNamespace(time=lambda: 1e9))
    logger.log_metrics({"a": 1.0}, 1)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.wall_time for event in events.Scalars("a")] == [1e9]
