"""Workers that do not fit into memory are refused."""

from __future__ import annotations

import pytest

from framework import UserError
from framework.tune import memory


def test_workers_beyond_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000 * 2**20)
    monkeypatch.setattr(memory, "own_size", lambda: 300 * 2**20)
    memory.check_memory(3)
    words = r"workers=4: each needs some 300 MiB, and 1,000 MiB are left; give at most --workers 3"
    with pytest.raises(UserError, match=words):
        memory.check_memory(4)
    monkeypatch.setattr(memory, "available", lambda: None)  # a system that does not tell
    memory.check_memory(4)


def test_this_process_holds_memory_and_some_is_left() -> None:
    own, left = memory.own_size(), memory.available()
    assert own is None or own > 2**20
    assert left is None or left > 2**20
