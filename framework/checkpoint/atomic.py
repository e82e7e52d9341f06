"""Files that are written beside their place and moved there, so that whoever looks finds the old or the new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from framework.errors import UserError, one_line


@contextmanager
def draft_of(path: Path, who: str) -> Iterator[Path]:
    """Hold a path to write to, of the same suffix; the file is moved to its place where all went well, else removed.

    Args:
        path: where the file is to be.
        who: what is named in the error, such as ``"--out"``.

    Raises:
        UserError: where it cannot be written.
    """
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        told = error.strerror or one_line(error)
        raise UserError(f"{who} {path}: cannot be written ({told})") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
