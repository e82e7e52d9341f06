"""Event files taken back to where a checkpoint was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from framework.checkpoint.events import sizes_of, take_back


def steps_in(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in events.Scalars("a")] if "a" in events.Tags()["scalars"] else []


def logger_of(folder: Path, steps: range) -> TensorBoardLogger:
    logger = TensorBoardLogger(folder.parent, name="", version=folder.name)
    for step in steps:
        logger.log_metrics({"a": float(step)}, step)
    return logger


def test_what_was_logged_since_is_cut_off_and_what_was_before_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    logger = logger_of(folder, range(30))
    sizes = sizes_of(folder, [logger])  # with what TensorBoard still held back
    for step in range(30, 50):
        logger.log_metrics({"a": float(step)}, step)
    logger.finalize("success")
    assert steps_in(folder) == list(range(50))
    take_back(folder, sizes)
    assert steps_in(folder) == list(range(30))
    take_back(folder, sizes)
    assert steps_in(folder) == list(range(30))


def test_a_record_that_was_half_written_is_cut_off(tmp_path: Path) -> None:
    logger = logger_of(tmp_path / "run", range(3))
    sizes = sizes_of(tmp_path / "run", [logger])
    logger.finalize("success")
    (file,) = (tmp_path / "run").glob("events*")
    with file.open("ab") as events:
        events.write(b"half of a rec")
    take_back(tmp_path / "run", sizes)
    assert file.stat().st_size == next(iter(sizes.values()))
    assert steps_in(tmp_path / "run") == [0, 1, 2]


def test_a_file_begun_since_goes_and_other_files_stay(tmp_path: Path) -> None:
    logger = logger_of(tmp_path, range(3))
    sizes = sizes_of(tmp_path, [logger])
    logger.finalize("success")
    (tmp_path / "notes.txt").write_text("mine")
    with SummaryWriter(str(tmp_path), filename_suffix=".later") as later:
        later.add_scalar("a", 1.0, 7)
    take_back(tmp_path, sizes)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*sizes, "hparams.yaml", "notes.txt"])


def test_folders_within_are_left_alone(tmp_path: Path) -> None:
    loggers = [logger_of(tmp_path / "run", range(2)), logger_of(tmp_path / "run" / "phase", range(5))]
    sizes = sizes_of(tmp_path / "run", loggers)
    assert len(sizes) == 1
    for logger in loggers:
        logger.log_metrics({"a": 9.0}, 9)
        logger.finalize("success")
    take_back(tmp_path / "run", sizes)
    assert steps_in(tmp_path / "run" / "phase") == [0, 1, 2, 3, 4, 9]
    assert steps_in(tmp_path / "run") == [0, 1]


def test_a_file_shorter_than_it_was_stays_as_it_is(tmp_path: Path) -> None:
    """Of a disk that lost a part of it; filled up with zeros it could not be read any more."""
    logger = logger_of(tmp_path, range(5))
    sizes = sizes_of(tmp_path, [logger])
    logger.finalize("success")
    ((name, size),) = sizes.items()
    short = (tmp_path / name).read_bytes()[: size - 20]
    (tmp_path / name).write_bytes(short)
    take_back(tmp_path, sizes)
    assert (tmp_path / name).read_bytes() == short


@pytest.mark.parametrize("loggers", [[], [CSVLogger(".")]])
def test_without_tensorboard_there_is_nothing_to_take_back(loggers: list[CSVLogger], tmp_path: Path) -> None:
    assert sizes_of(tmp_path, loggers) == {}
    take_back(tmp_path, {"gone": 3})
    assert list(tmp_path.iterdir()) == []
