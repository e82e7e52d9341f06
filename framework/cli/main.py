"""Entry point of the command line: run the named command and turn errors into exit codes.

Nothing heavy is imported before a recipe is loaded, so that ``--help`` is instant.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from framework.cli.answers import compare
from framework.cli.commands import check, ensemble, list_plugins, run_with_recipe, soup
from framework.cli.flags import COMMANDS, PROG
from framework.cli.tracebacks import print_own_lines, print_plugin_error, print_traceback
from framework.errors import Mistake, UserError, did_you_mean, one_line
from framework.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the arguments, those of the process by default.

    Returns:
        0 on success; 1 if a recipe raised or an installed plugin is broken; 2 for a user error, printed on one line;
        130 on Ctrl-C, 143 on SIGTERM.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with a closed descriptor: nobody reads the lines
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open as long as the process
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        return _run(args)
    except UserError as error:
        if debug:
            traceback.print_exception(error)
        print(f"error: {one_line(error)}", file=sys.stderr)
        if isinstance(error, Mistake) and not debug:
            print_own_lines(error)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as head, has ended
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        return 1
    except KeyboardInterrupt as interrupt:
        return 128 + getattr(interrupt, "number", 2)
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        elif not print_plugin_error(error):
            print_traceback(error, args[1] if len(args) > 1 else "")
        return 1


def _run(args: list[str]) -> int:
    command = args[0] if args else "--help"
    if command in ("-h", "--help"):
        print(_overview())
        return 0
    if command == "--version":
        print(f"jtilde {__version__}")
        return 0
    if command not in COMMANDS:
        raise UserError(f"no such command: {command}{did_you_mean(command, COMMANDS)}")
    if command == "plugins":
        return list_plugins(args[1:])
    if command == "check":
        return check(args[1:])
    if command == "ensemble":
        return ensemble(args[1:])
    if command == "soup":
        return soup(args[1:])
    if command == "compare":
        return compare(args[1:])
    return run_with_recipe(command, args[1:])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROG} COMMAND [RECIPE] [flags]",
            "",
            "Train neural networks with regularizers and optimizers as plugins.",
            "",
            *lines,
            "",
            "A recipe is a Python file that defines recipe(…) -> Recipe; its parameters are flags:",
            f"  {PROG} fit RECIPE --help",
            "",
            "--debug prints whole tracebacks.",
        ]
    )
