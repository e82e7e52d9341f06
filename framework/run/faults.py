"""Who raised: the plugin and the hook point that an error came out of, and loader workers that died."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback, LightningModule

from framework.errors import UserError, note
from framework.plugin.hooks import HOOKS
from framework.plugin.plugin import Plugin

if TYPE_CHECKING:
    from framework.engine.core import Core

_ASKED = {*HOOKS, *(name for name in vars(Callback) if not name.startswith("_"))}
_NOTE = re.compile(r"^plugin '.*' \([\w.<>]+\) raised in \w+.*$", re.MULTILINE)


def name_plugin(error: BaseException) -> str | None:
    """Return which plugin an error came out of and where, as a note that is added to the error; None for no plugin.

    It is found in the traceback, so that asking plugins costs nothing. What a plugin has the network do is not the
    plugin's doing: an error of the network or of the loss within a second evaluation names nobody.

    Example:
        >>> class Halve(Plugin):
        ...     def begin_step(self, step):
        ...         1 / 0
        >>> try:
        ...     Halve().begin_step(None)
        ... except ZeroDivisionError as error:
        ...     name_plugin(error)
        "plugin 'halve' (framework.run.faults.Halve) raised in begin_step: ZeroDivisionError: division by zero"
    """
    told = note_of(error)
    trace = plugins_trace(error.__traceback__)
    if told is not None or trace is None:
        return told
    frame = trace.tb_frame
    plugin = _first_argument(frame)
    told = note(plugin.name, type(plugin), frame.f_code.co_name, _step(error.__traceback__), error)
    error.add_note(told)
    return told


def note_of(error: BaseException) -> str | None:
    """Return the line that an error carries, in its notes or from a loader worker in its text; None for none."""
    found = _NOTE.search("\n".join([*getattr(error, "__notes__", ()), str(error)]))
    return found[0] if found else None


def plugins_trace(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the plugin's frame on, None where none is to blame."""
    found = None
    while trace is not None:
        frame = trace.tb_frame
        name, who = frame.f_code.co_name, _first_argument(frame)
        if found is None and name in _ASKED and isinstance(who, Plugin):
            found = trace
        elif name == "compute_loss" and isinstance(who, LightningModule):
            found = None
        trace = trace.tb_next
    return found


def _first_argument(frame: FrameType) -> Any:
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _step(trace: TracebackType | None) -> str:
    for frame, _ in traceback.walk_tb(trace):
        if frame.f_code.co_name == "training_step" and isinstance(core := _first_argument(frame), LightningModule):
            return f" at step {core.at.index}"
    return ""


@contextmanager
def faults(core: Core) -> Iterator[None]:
    """Name the plugin that an error came out of, and tell of loader workers that died.

    Raises:
        UserError: in place of the loader's error where a worker died, or where one raised it.
    """
    try:
        yield
    except UserError as error:
        if "Original Traceback" in str(error):  # of a loader worker
            raise UserError(str(error).rstrip().splitlines()[-1].partition("UserError: ")[2]) from error
        raise
    except Exception as error:
        if (told := _of_death(error, core)) is not None:
            raise UserError(told) from error
        name_plugin(error)
        raise


def _of_death(error: Exception, core: Core) -> str | None:
    """Tell of a worker that died, None where none did."""
    noticed = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
    if not noticed and not isinstance(error, ConnectionError | EOFError):  # which its last batch may end in
        return None
    code = core.exit_code_of_workers()
    if code is None and not noticed:
        return None
    code = code or -signal.SIGKILL
    workers = core.data.workers if core.data is not None else 0
    way = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    advice = "Data(workers=0) shows what of the data set or its transforms ends it"
    if code == -signal.SIGKILL:
        advice = "most often since memory ran out: use fewer workers, or smaller batches"
    if core._trainer is not None and core.trainer.state.fn == "fit":
        advice += "; --resume goes on with the run"
    return f"Data(workers={workers}): a loader worker {way}; {advice}"
