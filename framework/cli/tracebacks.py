"""Tracebacks on the command line, cut down to the frames of the plugin or recipe that raised."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType


def print_plugin_error(error: BaseException) -> bool:
    """Print which plugin raised, then its traceback; return False if no plugin raised."""
    if "framework.plugin.plugin" not in sys.modules:
        return False
    from framework.plugin.blame import name_plugin, plugins_trace

    line = name_plugin(error)
    if line is None:
        return False
    print(f"error: {line}", file=sys.stderr)
    error.__notes__ = [note for note in getattr(error, "__notes__", ()) if note != line]
    traceback.print_exception(error.with_traceback(plugins_trace(error.__traceback__)))
    return True


def print_own_lines(error: BaseException) -> None:
    """Print the lines of the user's own code that led to an error: those outside of packages and of this framework."""
    cause = error.__cause__ or error
    homes = (str(Path(__file__).parents[1]), sys.prefix, sys.base_prefix)
    own = [frame for frame in traceback.extract_tb(cause.__traceback__) if not frame.filename.startswith((*homes, "<"))]
    print("".join(traceback.format_list(own)), file=sys.stderr, end="")


def print_traceback(error: BaseException, path: str) -> None:
    """Print the traceback of an error from the recipe's first frame on, without the frames that called the recipe.

    Args:
        error: the error.
        path: path of the recipe; empty if there is none.
    """
    recipe = str(Path(path).expanduser().resolve()) if path else ""
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = _from_file(seen.__traceback__, recipe)
        if isinstance(seen, SyntaxError) and seen.filename == recipe:
            seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    traceback.print_exception(error)


def _from_file(trace: TracebackType | None, file: str) -> TracebackType | None:
    own = trace
    while own is not None and own.tb_frame.f_code.co_filename != file:
        own = own.tb_next
    return own or trace
