"""Runs are found in folders; those that did not end are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framework import UserError
from framework.tune.runs import Trained, runs_in

RECORD: dict[str, Any] = {
    "status": "finished",
    "recipe": "toy",
    "seed": 3,
    "parameters": {"width": 4},
    "plugins": [{"name": "sam", "class": "plugins.sam.SAM", "settings": {"rho": 0.1, "name": "sam"}}, {"class": "C"}],
    "trainer_options": {"max_epochs": 2, "enable_progress_bar": False},
    "metrics": {"val/loss": 1.0},
    "monitor": "val/loss",
    "mode": "min",
}


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({**RECORD, **changes}))
    return folder


def test_runs_are_found_at_any_depth_and_counted_once(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "version_0")
    write(tmp_path / "b" / "c" / "version_0", status="interrupted")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "run.json").write_text("{")
    assert [run.folder for run in runs_in([tmp_path, one])] == [one]


def test_what_was_trained_is_told_without_what_only_shows_it() -> None:
    run = Trained(Path(), RECORD)
    assert run.setting == {
        "recipe": "toy",
        "width": 4,
        "plugin sam": "plugins.sam.SAM",
        "sam.rho": 0.1,
        "plugin C": "C",
        "trainer.max_epochs": 2,
    }
    folds = Trained(Path(), {**RECORD, "arguments": {"width": 4, "fold": 1}})
    assert folds.setting == run.setting
    assert folds.pair == (("seed", 3), ("fold", 1))
    assert (run.higher_is_better("val/loss"), run.higher_is_better("val/f1")) == (False, None)


def test_runs_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folders = [write(tmp_path / "toy" / f"version_{number}") for number in (2, 10, 1)]
    assert [run.folder for run in runs_in([tmp_path])] == [folders[2], folders[0], folders[1]]


def test_objects_are_no_difference() -> None:
    one, other = (
        Trained(Path(), {**RECORD, "trainer_options": {"callbacks": [f"<Look object at 0x7f{place}>"]}})
        for place in (1, 2)
    )
    assert one.setting == other.setting


@pytest.mark.parametrize("name", ["nowhere", "empty", "unfinished"])
def test_folders_without_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "unfinished", status="running")
    words = {
        "nowhere": "no such folder: .*nowhere",
        "empty": "empty: no run that ended in it$",
        "unfinished": "unfinished: no run that ended in it; 1 did not end: ",
    }
    with pytest.raises(UserError, match=words[name]):
        runs_in([tmp_path / name])
