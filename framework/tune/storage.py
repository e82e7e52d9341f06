"""Where a study is kept: a journal file in its folder, or a server that several machines reach."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import UserError, one_line

try:
    import fcntl
except ImportError:  # Windows has no such locks: there one process may work on a journal file
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study

_TRIES = 5


class JournalLock:
    """The lock on a journal file, which the system releases when the process that holds it is killed.

    Optuna's own locks are files that a killed process leaves behind, at which all others wait for half a minute. A line
    that a killed process left unfinished is removed, since Optuna could read nothing that follows it.

    Args:
        path: the journal file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Wait for the lock and take it."""
        self._descriptor = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._mend()
        return True

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _mend(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            if end and file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


def open_storage(where: str) -> BaseStorage:
    """Open a storage.

    Args:
        where: path of a journal file, or an address: ``sqlite:///FILE``, ``postgresql://...``, ``mysql://...``, or
            ``grpc://HOST:PORT`` of Optuna's proxy.

    Raises:
        UserError: if it cannot be reached, or its driver is not installed.
    """
    from optuna.storages import GrpcStorageProxy
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    try:
        if where.startswith("grpc://"):
            host, _, port = where.removeprefix("grpc://").partition(":")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of being experimental
                return GrpcStorageProxy(host=host, port=int(port or 13000))
        if "://" in where:
            return _database(where)
        path = Path(where)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))  # type: ignore[arg-type]
    except ModuleNotFoundError as error:
        raise UserError(f"storage={hidden(where)!r}: needs the package {error.name}; install it") from error
    except Exception as error:  # each database's driver has errors of its own
        raise UserError(f"storage={hidden(where)!r}: cannot be opened: {one_line(error)}") from error


def _database(where: str) -> BaseStorage:
    """Open a database; two machines that make its tables at the same time hinder one another, so this tries again."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, ProgrammingError
    from sqlalchemy.pool import NullPool

    for rest in range(_TRIES, -1, -1):
        try:
            # a worker trains for long between two words, and servers limit how many connections are open
            return RDBStorage(where, engine_kwargs={"poolclass": NullPool})
        except (IntegrityError, ProgrammingError):
            if not rest:
                raise
            time.sleep(0.5)
    raise AssertionError


def hidden(where: str) -> str:
    """Return an address without its password.

    Example:
        >>> hidden("postgresql://me:secret@host/db")
        'postgresql://me:***@host/db'
    """
    scheme, found, rest = where.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}:***@{host}" if found and at and ":" in user else where


def open_study(where: str, name: str, direction: str, *, create: bool = True) -> Study:
    """Open a study, or make it if it is not there yet.

    Args:
        where: the storage.
        name: the study's name.
        direction: ``"minimize"`` or ``"maximize"``.
        create: make the study if it is missing.

    Raises:
        UserError: if the storage cannot be reached, or the study is missing.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage: Any = open_storage(where)
    try:
        try:
            if create:
                return optuna.create_study(storage=storage, study_name=name, direction=direction)  # type: ignore[arg-type]
        except optuna.exceptions.DuplicatedStudyError:
            pass
        return optuna.load_study(storage=storage, study_name=name)
    except KeyError as error:
        raise UserError(f"storage={hidden(where)!r}: has no study {name!r}") from error
    except Exception as error:  # each database's driver has errors of its own
        raise UserError(f"storage={hidden(where)!r}: cannot be used: {one_line(error)}") from error
