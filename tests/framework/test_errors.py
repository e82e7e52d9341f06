"""The wording that errors share."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from framework.errors import NonFiniteError, UserError, brief, did_you_mean, note, one_line, some, tally


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


def test_values_are_shown_briefly() -> None:
    assert brief(np.zeros((3, 2))) == "<ndarray of shape (3, 2)>" and brief(torch.zeros(3)) == "<Tensor of shape (3,)>"
    assert brief("text") == "'text'" and brief(2.5) == "2.5"
    long = brief([torch.zeros(50)] * 3)
    assert len(long) == 80 and long.endswith("...") and "\n" not in long


def test_names_are_counted() -> None:
    assert tally([]) == "" and tally(["a"] * 3) == "a (3 times)"
    assert tally(["a", "b", "a", "c", "d"]) == "a (2 times), b, c and 1 other"
