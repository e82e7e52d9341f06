"""Checkpoint files: written atomically, checked when they are read, and holding only data, never code."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from framework.checkpoint.atomic import atomic_file
from framework.engine.state import OWN_ENTRIES, BadCheckpoint, check_format
from framework.errors import UserError, one_line

_FOLDER = 0x10  # attribute of an entry of a zip file
_HANDED_BACK = ".temp.ckpt"  # bare weights, which processes that Lightning forks write for their parent
# what Lightning writes into every checkpoint, and reads
_ENTRIES = ("state_dict", "callbacks", "loops", "epoch", "global_step", "pytorch-lightning_version")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a run's checkpoint, with its tensors on the CPU.

    Raises:
        UserError: if there is no such file.
        BadCheckpoint: if it is damaged, holds code, or has another format.
    """
    content = read_data(path)
    check_format(content, path)
    own = content["framework"]
    missing = [name for name in _ENTRIES if name not in content] + [name for name in OWN_ENTRIES if name not in own]
    if missing:
        raise BadCheckpoint(f"{path}: an incomplete checkpoint, without {', '.join(map(repr, missing))}")
    return content


def read_data(path: str | Path) -> dict[str, Any]:
    """Return the dictionary that a file holds, with its tensors on the CPU.

    Every byte is compared with the checksums that ``torch.save`` writes and ``torch.load`` ignores, and unpickling is
    restricted to tensors and plain data, so that a file from an untrusted source can be read: no code in it is run.

    Raises:
        UserError: if there is no such file.
        BadCheckpoint: if it is damaged, holds code, or is not a dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch skips an entry that is marked as a folder, and leaves the memory of its tensor uninitialized
            marked = next((one.filename for one in archive.infolist() if one.external_attr & _FOLDER), None)
            damaged = marked or archive.testzip()
    except Exception as error:  # a flipped bit may name another compression method, each with its own errors
        raise BadCheckpoint(f"{path}: damaged, or not a checkpoint ({one_line(error)})") from error
    if damaged is not None:
        what = "is marked as a folder" if marked else "has a wrong checksum"
        raise BadCheckpoint(f"{path}: damaged ({damaged} {what})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch warns about is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise not_data(path, error) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise BadCheckpoint(f"{path}: damaged, or not a checkpoint ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path}: holds a {type(content).__name__}, which is not a checkpoint")
    return content


def not_data(path: str | Path, error: UnpicklingError) -> BadCheckpoint:
    """Return the error for a file that torch refused to unpickle.

    Args:
        path: the file.
        error: torch's error.
    """
    found = re.search(r"GLOBAL ([\w.]*\w)", str(error))
    wants = f" ({found[1]})" if found else ""
    return BadCheckpoint(
        f"{path}: holds more than tensors and plain data{wants} and was not unpickled; use a checkpoint that a run of"
        " this recipe wrote"
    )


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint atomically, see :func:`framework.checkpoint.atomic.atomic_file`.

    Raises:
        OSError: if it cannot be written, as on a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as draft, draft.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's writer wraps an error of the file below it
            below = error.__context__
            raise below if isinstance(below, OSError) else OSError(one_line(error)) from error


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's plugin for checkpoint files, through :func:`write_checkpoint` and :func:`read_checkpoint`.

    If a file cannot be written, the user is warned once and training continues; Lightning's own plugin would end the
    run. Paths on remote file systems are left to Lightning.

    Attributes:
        failed: True if the last file could not be written.
    """

    def __init__(self) -> None:
        self.failed = False
        self._warned = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        self.failed = not self.try_to(lambda: write_checkpoint(checkpoint, path))

    def try_to(self, write: Callable[[], None]) -> bool:
        """Call ``write`` and return True if it succeeded; warn the user of the first failure."""
        try:
            write()
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"a checkpoint could not be written ({error.strerror or one_line(error)}); training continues,"
                    " and earlier checkpoints stay",
                    stacklevel=2,
                )
            return False
        return True

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; only data is read, even with ``weights_only=False``."""
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        return read_data(path) if Path(path).name == _HANDED_BACK else read_checkpoint(path)
