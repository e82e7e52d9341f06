"""Finds the plugin and the hook point that raised an error, from the error's traceback."""

from __future__ import annotations

import re
import traceback
from types import FrameType, TracebackType
from typing import Any

from pytorch_lightning import Callback, LightningModule

from framework.errors import note
from framework.plugin.hooks import HOOKS
from framework.plugin.plugin import Plugin

_ASKED = {*HOOKS, *(name for name in vars(Callback) if not name.startswith("_"))}
_NOTE = re.compile(r"^plugin '.*' \([\w.<>]+\) raised in \w+.*$", re.MULTILINE)


def name_plugin(error: BaseException) -> str | None:
    """Return a line that names the plugin and hook point that raised an error, and add it to the error as a note.

    The plugin is read from the traceback, so calling plugins has no overhead. An error that the network or the loss
    raises during a second evaluation is not attributed to the plugin that requested the evaluation.

    Returns:
        The line, or None if no plugin raised the error.

    Example:
        >>> class Halve(Plugin):
        ...     def begin_step(self, step):
        ...         1 / 0
        >>> try:
        ...     Halve().begin_step(None)
        ... except ZeroDivisionError as error:
        ...     name_plugin(error)
        "plugin 'halve' (framework.plugin.blame.Halve) raised in begin_step: ZeroDivisionError: division by zero"
    """
    line = note_of(error)
    trace = plugins_trace(error.__traceback__)
    if line is not None or trace is None:
        return line
    frame = trace.tb_frame
    plugin = _first_argument(frame)
    line = note(plugin.name, type(plugin), frame.f_code.co_name, _step(error.__traceback__), error)
    error.add_note(line)
    return line


def note_of(error: BaseException) -> str | None:
    """Return the line that :func:`name_plugin` added to an error earlier, or None.

    The line is in the error's notes, or in the text of an error that comes from a loader's worker process.
    """
    found = _NOTE.search("\n".join([*getattr(error, "__notes__", ()), str(error)]))
    return found[0] if found else None


def plugins_trace(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the plugin's frame on, or None if no plugin raised the error."""
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


def step_of(trace: TracebackType | None) -> str:
    """Return ``"step N: "`` if a traceback is from within an optimizer step, else an empty text."""
    at = _step(trace)
    return f"{at.removeprefix(' at ')}: " if at else ""


def _step(trace: TracebackType | None) -> str:
    for frame, _ in traceback.walk_tb(trace):
        if frame.f_code.co_name == "training_step" and isinstance(core := _first_argument(frame), LightningModule):
            return f" at step {core.at.index}"
    return ""
