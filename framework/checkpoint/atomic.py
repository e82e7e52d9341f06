"""Atomic writes: write a temporary file, flush it to the disk, then rename it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from framework.errors import UserError, one_line


@contextmanager
def atomic_file(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to ``path`` once it is on the disk.

    Readers see the old file or the new one, never a part of one, even if the machine loses power. On an error the
    temporary file is removed and the old file stays.

    Args:
        path: where the file is to be; its folder exists.
        temporary: the temporary path, in the same folder; ``.<name>.tmp`` by default, which ``resume.clear`` removes
            after a run was killed.

    Raises:
        OSError: if the file cannot be written, as on a full disk.
    """
    draft = temporary if temporary is not None else path.with_name(f".{path.name}.tmp")
    # a leftover may be another name of a good file, which writing into it would destroy
    draft.unlink(missing_ok=True)
    try:
        yield draft
        # Windows flushes only files that are open for writing
        with draft.open("r+b" if os.name == "nt" else "rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def link(path: Path, name: Path) -> None:
    """Give a file a second name, atomically; copy it if the file system has no hard links.

    Raises:
        OSError: if the name cannot be written.
    """
    with atomic_file(name) as draft:
        try:
            os.link(path, draft)
        except OSError:
            shutil.copyfile(path, draft)


@contextmanager
def output_file(path: Path, who: str) -> Iterator[Path]:
    """Yield a temporary path of the same suffix for a file that the user asked for, as :func:`atomic_file` does.

    Args:
        path: where the file is to be; its folder is made if it does not exist.
        who: the argument that names the file, for the error, such as ``"--out"``.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # two processes may write the same file
        with atomic_file(path, path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")) as draft:
            yield draft
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UserError(f"{who} {path}: cannot be written ({reason})") from error


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, if the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
