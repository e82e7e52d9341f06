"""Atomic writes: the old file or the new one, on the disk before it is renamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from framework.checkpoint.atomic import atomic_file, link, output_file
from framework.checkpoint.folder import RunFolder
from framework.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the system calls that make a write durable, as they are made."""
    made: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        made.append("fsync")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Any) -> Path:
        made.append(f"rename {source.name}")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    return made


def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_afterwards(tmp_path: Path, calls: list[str]) -> None:
    with atomic_file(tmp_path / "a.txt") as draft:
        draft.write_text("new")
    assert calls == ["fsync", "rename .a.txt.tmp", "fsync"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_run_json_is_flushed_too(tmp_path: Path, calls: list[str]) -> None:
    RunFolder(tmp_path).write({"status": "running"})
    assert calls == ["fsync", "rename .run.json.tmp", "fsync"]
    assert RunFolder(tmp_path).read() == {"status": "running"}
    assert names(tmp_path) == ["run.json"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    def interrupted() -> None:
        with atomic_file(tmp_path / "a.txt") as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_leftover_that_is_a_second_name_of_a_good_file_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "good.ckpt").write_text("good")
    os.link(tmp_path / "good.ckpt", tmp_path / ".a.ckpt.tmp")  # of a process that was killed within link
    with atomic_file(tmp_path / "a.ckpt") as draft:
        draft.write_text("new")
    assert (tmp_path / "good.ckpt").read_text() == "good"


def test_a_second_name_replaces_the_file_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_text("new")
    (tmp_path / "best.ckpt").write_text("old")
    link(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt").samefile(tmp_path / "last.ckpt")
    assert names(tmp_path) == ["best.ckpt", "last.ckpt"]


def test_an_output_file_keeps_its_suffix_and_makes_its_folder(tmp_path: Path) -> None:
    with output_file(tmp_path / "new" / "net.pt2", "--out") as draft:
        assert draft.suffix == ".pt2"
        draft.write_text("network")
    assert names(tmp_path / "new") == ["net.pt2"]


def test_an_output_file_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = output_file(tmp_path / "file" / "net.pt2", "--out")
    with pytest.raises(UserError, match=r"--out .*net.pt2: cannot be written"), output:
        pass
