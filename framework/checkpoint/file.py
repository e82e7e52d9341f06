"""Checkpoint files: written whole or not at all, checked when they are read, and data alone, never programs."""

from __future__ import annotations

import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from framework.errors import UserError, one_line

FORMAT = 1

_FOLDER = 0x10  # among the attributes of an entry of a zip file
_HANDED_BACK = ".temp.ckpt"  # bare weights, which processes that Lightning forks leave for the one that forked them
# what Lightning and the core write into every checkpoint, and read
_ENTRIES = ("state_dict", "callbacks", "loops", "epoch", "global_step", "pytorch-lightning_version")
_OWN_ENTRIES = ("history", "within_epoch", "stopped", "skipped")


class BadCheckpoint(UserError):
    """A file that is no usable checkpoint; the message says why."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint of a run holds, its tensors on the CPU.

    Raises:
        UserError: where there is no such file.
        BadCheckpoint: where it is damaged, holds programs, or is of another format.
    """
    content = read_data(path)
    check_format(content, path)
    own = content["framework"]
    lacks = [name for name in _ENTRIES if name not in content] + [name for name in _OWN_ENTRIES if name not in own]
    if lacks:
        raise BadCheckpoint(f"{path}: no whole checkpoint, it lacks {', '.join(map(repr, lacks))}")
    return content


def check_format(content: Mapping[str, Any], path: str | Path) -> None:
    """Check that a file is a checkpoint of a run, of the format that this version writes.

    Raises:
        BadCheckpoint: where it is not.
    """
    kept = content.get("framework")
    if not isinstance(kept, dict):
        raise BadCheckpoint(f"{path}: no checkpoint of this framework (it has no format number)")
    if kept.get("format") != FORMAT:
        raise BadCheckpoint(
            f"{path}: of format {kept.get('format')!r}, and this version reads format {FORMAT}; use the version that"
            " wrote it (run.json names it)"
        )


def read_data(path: str | Path) -> dict[str, Any]:
    """Return the dictionary that a file holds, its tensors on the CPU.

    Every byte is compared with the checksums that ``torch.save`` writes and ``torch.load`` does not look at, and
    unpickling is restricted to tensors and plain data, so that a file from anywhere can be read: nothing in it is run.

    Raises:
        UserError: where there is no such file.
        BadCheckpoint: where it is damaged, holds programs, or is no dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch takes what is marked as a folder for read, and leaves the memory of its tensor as it finds it
            marked = next((one.filename for one in archive.infolist() if one.external_attr & _FOLDER), None)
            damaged = marked or archive.testzip()
    except Exception as error:  # one bit may name another way of packing, each with errors of its own
        raise BadCheckpoint(f"{path}: damaged, or no checkpoint at all ({one_line(error)})") from error
    if damaged is not None:
        what = "is marked as a folder" if marked else "has a wrong checksum"
        raise BadCheckpoint(f"{path}: damaged ({damaged} {what})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns of is refused here, in one line
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise no_data(path, error) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise BadCheckpoint(f"{path}: damaged, or no checkpoint at all ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path}: holds a {type(content).__name__}, no checkpoint")
    return content


def no_data(path: str | Path, error: UnpicklingError) -> BadCheckpoint:
    """Return the error that tells of a file that torch refused to unpickle."""
    found = re.search(r"GLOBAL ([\w.]*\w)", str(error))
    wants = f" ({found[1]})" if found else ""
    return BadCheckpoint(
        f"{path}: holds more than tensors and plain data{wants} and was not unpickled; use a checkpoint that a run of"
        " this recipe wrote"
    )


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint beside its place and move it there, so that the file is the old one or the new one.

    It is on the disk before it is moved: a machine that loses power leaves no half of it either.

    Raises:
        OSError: where it cannot be written, as on a full disk; nothing of it stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with draft.open("wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:
                # torch's writer tells of a write that failed below it in its own way
                below = error.__context__
                raise below if isinstance(below, OSError) else OSError(one_line(error)) from error
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def link(path: Path, name: Path) -> None:
    """Give a file one more name, in one go; where the file system has no such links, copy it."""
    draft = name.with_name(f".{name.name}.tmp")
    draft.unlink(missing_ok=True)
    try:
        os.link(path, draft)
    except OSError:
        shutil.copyfile(path, draft)
    draft.replace(name)


def _sync_folder(folder: Path) -> None:
    """Make the folder's names durable, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's way to checkpoint files, through :func:`write_checkpoint` and :func:`read_checkpoint`.

    A file that cannot be written is told once by a warning, and training goes on; Lightning's own would end the run.
    Addresses of remote file systems are left to Lightning.

    Attributes:
        failed: whether the last file could not be written.
    """

    def __init__(self) -> None:
        self.failed = False
        self._told = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        self.failed = not self.try_to(lambda: write_checkpoint(checkpoint, path))

    def try_to(self, write: Callable[[], None]) -> bool:
        """Write, and tell whether it succeeded; the first failure is told to the user as well."""
        try:
            write()
        except OSError as error:
            if not self._told:
                self._told = True
                warnings.warn(
                    f"a checkpoint could not be written ({error.strerror or one_line(error)}); training goes on, and"
                    " the ones before it stay",
                    stacklevel=2,
                )
            return False
        return True

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; restricted to data whatever is asked for."""
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_data(path) if Path(path).name == _HANDED_BACK else read_checkpoint(path)
