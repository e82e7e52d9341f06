"""The lock on a run's folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from framework.checkpoint.folder import RunFolder
from framework.checkpoint.lock import Lock
from framework.errors import UserError
from tests.children import in_child


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEWORK_RUN_FOLDER", "restored afterwards")
    monkeypatch.delenv("FRAMEWORK_RUN_FOLDER")
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def taken_by_another(folder: Path) -> bool:
    def look() -> None:
        assert Lock(folder).take()

    return in_child(look) != 0


def test_another_process_is_kept_out_until_the_lock_is_left(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    assert lock.take()
    assert lock.take(), "who has it keeps it"
    assert taken_by_another(tmp_path)
    lock.leave()
    lock.leave()
    assert not taken_by_another(tmp_path)
    assert lock.take()
    assert taken_by_another(tmp_path)
    lock.leave()


def test_it_ends_with_its_process_though_a_worker_of_it_lives_on(tmp_path: Path) -> None:
    read, write = os.pipe()

    def die() -> None:
        assert Lock(tmp_path).take()
        worker = os.fork()
        if worker == 0:
            signal.pause()
        os.write(write, str(worker).encode())
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == -signal.SIGKILL
    worker = int(os.read(read, 20))
    try:
        assert not taken_by_another(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(read)
        os.close(write)


def test_a_worker_that_ends_does_not_end_its_parents_lock(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    assert lock.take()
    assert in_child(lock.leave) == 0
    assert taken_by_another(tmp_path)
    lock.leave()


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert Lock(tmp_path).take()


def test_a_run_in_training_is_reported(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "digits")

    def second() -> None:
        with pytest.raises(UserError, match=r"version_0: another process is training this run; stop it first"):
            RunFolder(folder.path).hold()
        assert RunFolder.create(tmp_path, "digits").path.name == "version_1"

    assert in_child(second) == 0
    folder.leave()
    assert in_child(RunFolder(folder.path).hold) == 0
