"""A lock on a run's folder, which the system releases when the process that holds it ends, even if it is killed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: there nothing is locked
    fcntl = None  # type: ignore[assignment]


class Lock:
    """A lock that the process that trains into a folder holds.

    It is a POSIX record lock: unlike one of ``flock``, it is not inherited by the loader's worker processes, which
    outlive a killed run by some seconds.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Take the lock and return True, or return False if another process holds it.

        Raises:
            OSError: if the folder cannot be written.
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
            # some network file systems have no locks: there nothing is locked either
        self._descriptor = descriptor
        return True

    def leave(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
