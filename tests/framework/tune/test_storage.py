"""Journal files survive killed writers; addresses hide passwords; storages that are away are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework import UserError
from framework.tune.storage import JournalLock, hidden, open_storage, open_study


def test_an_unfinished_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    study, made = open_study(str(path), "x", "minimize")
    assert made
    study.ask()
    before = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')  # killed while it wrote
    again, made = open_study(str(path), "x", "minimize")
    assert not made
    again.ask()
    assert path.read_bytes().startswith(before)
    assert len(open_study(str(path), "x", "minimize", create=False)[0].trials) == 2


def test_the_lock_is_exclusive_and_leaves_a_file_of_whole_lines_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(b"{}\n")
    lock = JournalLock(path)
    assert lock.acquire()
    lock.release()
    lock.release()
    assert path.read_bytes() == b"{}\n"


def test_addresses() -> None:
    assert hidden("sqlite:///study.db") == "sqlite:///study.db"
    assert hidden("postgresql://me@host:5432/db") == "postgresql://me@host:5432/db"
    assert "secret" not in hidden("postgresql://me:secret@host:5432/db")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("sqlite:////nowhere/at/all/study.db", r"storage='sqlite:////nowhere/at/all/study.db': cannot be "),
        ("nosuch://host/db", r"storage='nosuch://host/db': cannot be opened"),
    ],
)
def test_storages_that_are_away(where: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        open_storage(where)
    assert "\n" not in str(caught.value)


def test_a_study_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no study 'x'"):
        open_study(str(tmp_path / "journal.log"), "x", "minimize", create=False)
