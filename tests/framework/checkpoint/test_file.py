"""Checkpoint files: whole or not at all, checked when they are read."""

from __future__ import annotations

import os
import random
import resource
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from framework import Recipe, fit
from framework.checkpoint.file import (
    CheckpointFiles,
    read_checkpoint,
    read_data,
    write_checkpoint,
)
from framework.engine.state import FORMAT, BadCheckpoint
from framework.errors import UserError
from tests.children import in_child

MakeRecipe = Callable[..., Recipe]


def content(value: float = 0.0, **framework: Any) -> dict[str, Any]:
    kept = {"format": FORMAT, "history": [], "within_epoch": [], "stopped": None, "skipped": 0, **framework}
    return {
        "state_dict": {"a": torch.full((50,), value), "b": torch.arange(7)},
        "callbacks": {},
        "loops": {},
        "epoch": 1,
        "global_step": 3,
        "pytorch-lightning_version": "2.6.6",
        "framework": kept,
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    for value in (1.0, 2.0):
        write_checkpoint(content(value), path)
    read = read_checkpoint(path)
    assert torch.equal(read["state_dict"]["a"], torch.full((50,), 2.0))
    assert (read["epoch"], read["framework"]["format"]) == (1, FORMAT)
    assert names(path.parent) == ["last.ckpt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    error: BaseException, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1.0), path)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise error

    class Failing:
        """A file of which torch's own writer sees the error within its own."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: Any) -> None:
            raise error

    if where == "write":
        save = torch.save
        monkeypatch.setattr(torch, "save", lambda content, file: save(content, Failing(file)))
    else:
        monkeypatch.setattr(*((os, "fsync") if where == "fsync" else (Path, "replace")), fail)
    with pytest.raises(type(error)):
        write_checkpoint(content(2.0), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert names(tmp_path) == ["last.ckpt"]


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(1.0), path)

    def die() -> None:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        write_checkpoint(content(2.0), path)

    assert in_child(die) == -signal.SIGKILL
    assert read_checkpoint(path)["state_dict"]["a"][0] == 1.0
    write_checkpoint(content(3.0), path)
    assert read_checkpoint(path)["state_dict"]["a"][0] == 3.0
    assert names(tmp_path) == ["last.ckpt"]


# ---- reading ---------------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_file_that_was_cut_off_is_recognised_at_any_length(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.ckpt", tmp_path / "cut.ckpt"
    write_checkpoint(content(), whole)
    data = whole.read_bytes()
    for length in {0, 1, 100, *range(0, len(data), 97), *range(len(data) - 30, len(data))}:
        cut.write_bytes(data[:length])
        assert "damaged, or not a checkpoint" in refused(cut)


def flip(data: bytes, bit: int) -> bytes:
    bad = bytearray(data)
    bad[bit // 8] ^= 1 << bit % 8
    return bytes(bad)


def test_a_bit_that_flipped_is_recognised_or_changes_nothing(tmp_path: Path) -> None:
    """Bytes that pad the parts of the file, or date them, do not count."""
    whole, flipped = tmp_path / "whole.ckpt", tmp_path / "flipped.ckpt"
    write_checkpoint(content(1.5), whole)
    data, expected = whole.read_bytes(), read_checkpoint(whole)
    bits = random.Random(0).sample(range(8 * len(data)), 2000)
    recognised = 0
    for bit in bits:
        flipped.write_bytes(flip(data, bit))
        try:
            read = read_checkpoint(flipped)
        except BadCheckpoint:
            recognised += 1
        else:
            torch.testing.assert_close(read.pop("state_dict"), expected["state_dict"], rtol=0, atol=0)
            assert read == {name: value for name, value in expected.items() if name != "state_dict"}
    assert recognised > len(bits) / 3


def test_a_tensor_that_is_marked_as_a_folder_is_not_taken_for_read(tmp_path: Path) -> None:
    """Torch would return whatever is in memory."""
    path = tmp_path / "last.ckpt"
    write_checkpoint(content(), path)
    data = path.read_bytes()
    at = data.rindex(b"archive/data/0") - 8  # of the entry's attributes in the directory
    path.write_bytes(flip(data, 8 * at + 4))
    assert "archive/data/0 is marked as a folder" in refused(path)


def test_zeros_in_place_of_a_page_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({**content(), "more": torch.ones(10_000)}, path)
    data = bytearray(path.read_bytes())
    data[8192 : 8192 + 4096] = bytes(4096)
    path.write_bytes(data)
    assert "has a wrong checksum" in refused(path)


class Program:
    def __reduce__(self) -> Any:
        return os.mkdir, ("left a mark",)


def test_programs_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**content(), "more": Program()}, "bad.ckpt")
    assert "holds more than tensors and plain data (posix.mkdir) and was not unpickled" in refused(Path("bad.ckpt"))
    assert names(tmp_path) == ["bad.ckpt"]


@pytest.mark.parametrize(
    ("holds", "told"),
    [
        ([1, 2], "holds a list, which is not a checkpoint"),
        ({"state_dict": {}}, "it has no format number"),
        ({"framework": 3}, "it has no format number"),
        (content(format=FORMAT + 1), f"has format {FORMAT + 1}, but this version reads format {FORMAT}"),
        (content(format=None), "has format None"),
    ],
)
def test_what_is_no_checkpoint_of_a_run(holds: Any, told: str, tmp_path: Path) -> None:
    torch.save(holds, tmp_path / "x.ckpt")
    assert told in refused(tmp_path / "x.ckpt")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "x.ckpt"):
        with pytest.raises(UserError, match="no such checkpoint") as caught:
            read_data(path)
        assert not isinstance(caught.value, BadCheckpoint)


# ---- a disk that is full ---------------------------------------------------------------------------------------------


def test_the_first_failure_is_reported_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files, bad = CheckpointFiles(), tmp_path / "file" / "last.ckpt"
    with pytest.warns(UserWarning, match=r"a checkpoint could not be written \(.*\); training continues") as told:
        files.save_checkpoint(content(), bad)
    assert len(told) == 1
    assert files.failed
    files.save_checkpoint(content(), tmp_path / "last.ckpt")
    assert not files.failed
    files.save_checkpoint(content(), bad)  # a warning would be an error here
    assert files.failed


class Full(pl.Callback):
    """Allows no file of more than a thousand bytes during the third and fourth epoch, and looks at the last one."""

    def __init__(self, logs: Path) -> None:
        self.last, self.seen = logs / "recipe" / "version_0" / "checkpoints" / "last.ckpt", list[int]()

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        limit = 1000 if trainer.current_epoch in (2, 3) else unlimited
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited))
        if trainer.current_epoch > 0:
            self.seen.append(read_checkpoint(self.last)["epoch"])


def test_a_full_disk_ends_no_run_and_spoils_no_file(recipe: MakeRecipe, tmp_path: Path) -> None:
    """A limit on the size of files replaces a full disk: torch and the system report both in the same way."""
    full = Full(tmp_path)

    def run() -> None:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            options = {"max_epochs": 6, "logger": False, "callbacks": [full]}
            run = fit(recipe(), logs=tmp_path, trainer=options, checkpoint_seconds=0)
        lines = [str(one.message) for one in told if "checkpoint" in str(one.message)]
        assert len(lines) == 1, lines
        assert "a checkpoint could not be written (File too large); training continues" in lines[0]
        assert (run.status, run.epochs) == ("finished", 6)
        assert full.seen == [0, 1, 1, 1, 4]
        assert read_checkpoint(run.last_checkpoint or "")["epoch"] == 5
        assert names(full.last.parent) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
        assert read_checkpoint(full.last.with_name("previous.ckpt"))["epoch"] == 4

    assert in_child(run) == 0
