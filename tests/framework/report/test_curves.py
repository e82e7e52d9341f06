"""The logger of a run's curves."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from framework.report.curves import Curves
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


def test_all_values_of_a_call_are_one_record(tmp_path: Path) -> None:
    logger = Curves(tmp_path, name="", version="run")
    for step in range(3):
        logger.log_metrics({"a": 1.0, "b": 2.0, "c": 3.0}, step)
    logger.finalize("success")
    assert records_in(tmp_path / "run") == 4, "and the file's own"
