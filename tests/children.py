"""Processes that die or run out of something, forked from the tests' own to spare the seconds of their imports."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any


def in_child(run: Callable[[], object]) -> int:
    """Run a function in a process of its own and return its exit code, of one that a signal ended the negative number.

    It ends with 0 where the function returns, and with 70 and a traceback where it raises, as a failed assertion does.
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_call(owner: Any, name: str, times: int, do: Callable[[], object], *, after: bool = False) -> None:
    """Have something done at the n-th call of a function, counted from 1, before or after what it does itself."""
    whole, calls = getattr(owner, name), iter(range(1, 1 << 30))

    def counting(*args: Any, **kwargs: Any) -> Any:
        now = next(calls) == times
        if now and not after:
            do()
        result = whole(*args, **kwargs)
        if now and after:
            do()
        return result

    setattr(owner, name, counting)


def send(number: int) -> Callable[[], None]:
    """Return a function that sends its own process a signal."""
    return lambda: os.kill(os.getpid(), number)


def killed(run: Callable[[], object], owner: Any, name: str, times: int, *, after: bool = False) -> None:
    """Run a function in a process of its own that is killed at the n-th call of another one."""

    def dying() -> None:
        at_call(owner, name, times, send(signal.SIGKILL), after=after)
        run()

    assert in_child(dying) == -signal.SIGKILL, f"{name} was not called {times} times"
