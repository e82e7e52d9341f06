"""A run's folder."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from framework.checkpoint.folder import RunFolder, versions_in, versions_of_packages
from framework.errors import UserError


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEWORK_RUN_FOLDER", "restored afterwards")
    monkeypatch.delenv("FRAMEWORK_RUN_FOLDER")
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def make_many(logs: Path, gate: object, found: object) -> None:
    gate.wait()
    found.put([RunFolder.create(logs, "digits").path.name for _ in range(20)])


def test_two_processes_at_once_never_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate, found = context.Barrier(2), context.Queue()
    processes = [context.Process(target=make_many, args=(tmp_path, gate, found)) for _ in range(2)]
    for process in processes:
        process.start()
    names = [*found.get(timeout=30), *found.get(timeout=30)]
    for process in processes:
        process.join()
    assert len(names) == len(set(names)) == 40


def test_numbers_continue_from_the_highest_and_newest_is_by_number(tmp_path: Path) -> None:
    for name in ("version_2", "version_10", "version_x", "other"):
        (tmp_path / "digits" / name).mkdir(parents=True)
    assert RunFolder.newest(tmp_path, "digits").path.name == "version_10"
    assert RunFolder.create(tmp_path, "digits").path.name == "version_11"
    assert [number for number, _ in versions_in(tmp_path / "digits")] == [2, 10, 11]


def test_a_rank_that_is_launched_takes_the_folder_of_rank_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RunFolder.create(tmp_path, "digits")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert RunFolder.create(tmp_path, "digits").path == first.path


def test_a_second_run_of_rank_zero_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a run on several devices Lightning leaves LOCAL_RANK=0 in the process's environment."""
    first = RunFolder.create(tmp_path, "digits")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert RunFolder.create(tmp_path, "digits").path != first.path


def test_no_run_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run of 'digits' in .*; train one first"):
        RunFolder.newest(tmp_path, "digits")


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        RunFolder.create(tmp_path / "file", "digits")


def test_checkpoints_by_name_or_path(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    for name in ("best", "epoch3"):
        (folder.checkpoints / f"{name}.ckpt").touch()
    assert folder.checkpoint("best") == folder.checkpoints / "best.ckpt"
    path = str(folder.checkpoints / "epoch3.ckpt")
    assert folder.checkpoint(path) == Path(path)
    with pytest.raises(UserError, match=r"ckpt='last': no such checkpoint .*this run has: best, epoch3"):
        folder.checkpoint("last")


def test_run_json_is_replaced_whole_and_updated(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write({"a": 1, "b": float("nan"), "path": tmp_path})
    folder.update(a=2)
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 2, "b": "nan", "path": str(tmp_path)}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run's folder: it has no run.json"):
        RunFolder(tmp_path).read()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        RunFolder(tmp_path).read()


def test_a_copy_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").copy_recipe(tmp_path / "mine.py")
    RunFolder(tmp_path / "run").copy_recipe(None)
    assert (tmp_path / "run" / "recipe.py").read_text() == "x = 1\n"


def test_versions() -> None:
    assert {"python", "torch", "pytorch-lightning"} <= set(versions_of_packages())


def test_runs_are_listed_the_newest_first(tmp_path: Path) -> None:
    for number in (9, 10, 2):
        (tmp_path / "digits" / f"version_{number}").mkdir(parents=True)
    assert [folder.path.name for folder in RunFolder.all(tmp_path, "digits")] == [
        "version_10",
        "version_9",
        "version_2",
    ]
    assert RunFolder.all(tmp_path, "letters") == []


def test_ranks_use_the_folder_that_rank_zero_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("run"))
    folder.hold()
    assert RunFolder.of_ranks() is None, "a process that launched nobody, or rank zero, has its own"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert RunFolder.of_ranks() is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.chdir("/")
    made = RunFolder.of_ranks()
    assert made is not None
    assert made.path == tmp_path / "run"
    made.hold()  # rank zero holds it for all
    folder.leave()


def test_a_folder_that_cannot_be_held(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"cannot write there \(Is a directory\); choose another run"):
        RunFolder(tmp_path).hold()


def test_the_newest_run_is_one_with_a_checkpoint(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "digits" / f"version_{number}" / "checkpoints").mkdir(parents=True)
    (tmp_path / "digits" / "version_1" / "checkpoints" / "last.ckpt").touch()
    assert RunFolder.newest(tmp_path, "digits").path.name == "version_1"
