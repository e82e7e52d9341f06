from __future__ import annotations

import csv
from pathlib import Path

import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger

from framework.checkpoint.loggers import take_loggers_back


def rows(path: Path) -> list[tuple[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


def test_rows_up_to_the_checkpoint_stay(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path, name="", version="")
    for step in (1, 2, 3):
        first.log_metrics({"loss": float(step)}, step)
    first.save()
    second = CSVLogger(tmp_path, name="", version="")
    take_loggers_back([second], 2)
    assert rows(tmp_path) == [("1", "1.0"), ("2", "2.0")]
    second.log_metrics({"loss": 9.0}, 3)
    second.save()
    assert rows(tmp_path) == [("1", "1.0"), ("2", "2.0"), ("3", "9.0")]


def test_a_logger_without_a_file_and_one_of_tensorboard(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path)
    take_loggers_back([CSVLogger(tmp_path, name="new"), board], 7)
    assert board._kwargs["purge_step"] == 8


def test_what_cannot_be_taken_back_is_told() -> None:
    with pytest.warns(UserWarning, match="DummyLogger cannot be taken back to step 7"):
        take_loggers_back([DummyLogger()], 7)
