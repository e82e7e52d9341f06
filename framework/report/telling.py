"""Writing curves must not end a run: failures of loggers are told once, and training goes on."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from framework.errors import one_line

_METHODS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")
_Method = TypeVar("_Method", bound=Callable[..., Any])


def guard(loggers: Iterable[Any]) -> None:
    """Let errors of loggers, such as those of a full disk or a lost connection, be warnings: the first of each logger.

    Args:
        loggers: the Trainer's loggers, changed in place.
    """
    for logger in loggers:
        told: list[str] = []
        for name in _METHODS:
            method = getattr(logger, name, None)
            if method is not None and not isinstance(method, _Guarded):
                setattr(logger, name, _Guarded(method, type(logger).__name__, told))


class _Guarded:
    """A method of a logger that warns instead of raising; a class, so that a spawned process can be sent one."""

    def __init__(self, method: Callable[..., Any], who: str, told: list[str]) -> None:
        self._method, self._who, self._told = method, who, told

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._method(*args, **kwargs)
        except Exception as error:  # each logger has errors of its own
            _warn(self._who, error, self._told)
            return None


def telling(method: _Method) -> _Method:
    """Decorate a method that only writes curves or pictures: an ``OSError`` in it is a warning, the first one."""

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            _warn(type(self).__name__, error, self.__dict__.setdefault("_told", []))
            return None

    return guarded  # type: ignore[return-value]


def _warn(who: str, error: Exception, told: list[str]) -> None:
    if not told:
        told.append(who)
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {one_line(error)}"
        warnings.warn(f"{who} could not write ({reason}); training continues without it", stacklevel=3)
