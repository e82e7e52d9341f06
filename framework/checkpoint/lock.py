"""A lock on a run's folder, which ends with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: there nobody is kept out
    fcntl = None  # type: ignore[assignment]


class Lock:
    """Held by the process that trains into a folder.

    A lock of the POSIX kind: unlike one by ``flock`` the loader's worker processes, which outlive a killed run by some
    seconds, do not inherit it.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Take the lock, and tell whether nobody else had it.

        Raises:
            OSError: where the folder cannot be written.
        """
        if fcntl is None or self._descriptor is not None:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                return False
            # some network file systems have no locks: there nobody is kept out either
        self._descriptor = descriptor
        return True

    def leave(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
