"""Flags of commands that build no recipe of their own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from framework.errors import UserError, did_you_mean, one_line


def parse_plain(command: str, parser: argparse.ArgumentParser, args: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of such a command.

    Args:
        command: its name.
        parser: its parser, made with ``exit_on_error=False``.
        args: the flags.

    Raises:
        UserError: for a flag that it does not know, or a value that is none.
    """
    try:
        given, unknown = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"{command}: {one_line(error)}") from error
    if unknown:
        known = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        raise UserError(f"no such flag: {unknown[0]}{did_you_mean(unknown[0], known)}")
    return given
