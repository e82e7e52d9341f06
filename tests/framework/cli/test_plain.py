"""Flags of commands without a recipe."""

from __future__ import annotations

import argparse

import pytest

from framework import UserError
from framework.cli.plain import parse_plain


def test_flags_are_read_and_wrong_ones_told() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--metric")
    parser.add_argument("--count", type=int)
    assert vars(parse_plain("compare", parser, ["a", "--count", "3"])) == {"runs": ["a"], "metric": None, "count": 3}
    with pytest.raises(UserError, match=r"no such flag: --metirc; did you mean '--metric'"):
        parse_plain("compare", parser, ["--metirc", "x"])
    with pytest.raises(UserError, match=r"^compare: argument --count: invalid int value: 'x'"):
        parse_plain("compare", parser, ["--count", "x"])
