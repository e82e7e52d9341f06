"""The wording that errors share."""

from __future__ import annotations

import pickle

import pytest

from framework.errors import NonFiniteError, UserError, did_you_mean, note, one_line, some


@pytest.mark.parametrize("kind", [UserError, NonFiniteError])
def test_errors_reach_other_processes(kind: type[UserError]) -> None:
    again = pickle.loads(pickle.dumps(kind("one line")))
    assert (type(again), str(again)) == (kind, "one line")
    assert isinstance(again, UserError)


def test_a_close_name_is_meant_and_otherwise_all_are_told() -> None:
    assert did_you_mean("std", ["stdd", "kind"]) == "; did you mean 'stdd'?"
    assert did_you_mean("x", ["b", "a", "b"]) == "; known: a, b"
    assert did_you_mean("x", []) == "; known: none"


def test_messages_are_one_line() -> None:
    assert some(iter("abc")) == "a and 2 more"
    assert one_line(ValueError("a\n\tb ")) == "a b"
    assert "\n" not in note("sam", UserError, "attach", " here", ValueError("a\nb"))
