"""Ranges are read from text, checked against the declared type, and found in annotations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest

from framework import Choices, LogRange, Range, UserError
from framework.ranges import range_of, read_range
from framework.settings import NonNegative, PositiveInt, Probability


@pytest.mark.parametrize(
    ("text", "annotation", "expected"),
    [
        ("1e-3..1", float, LogRange(1e-3, 1.0)),
        ("0.2..0.8", Probability, Range(0.2, 0.8)),
        ("0..1", float, Range(0.0, 1.0)),
        ("1..5", Annotated[float, LogRange(1e-3, 10)], LogRange(1.0, 5.0)),
        ("1..500", Annotated[float, Range(0, 1000)], Range(1.0, 500.0)),
        ("-3..-1", float, Range(-3.0, -1.0)),
        ("16..256", PositiveInt, LogRange(16, 256)),
        ("16..32", int | None, Range(16, 32)),
        ("64,128", int, Choices(64, 128)),
        ("1e-3,1e-2", float, Choices(1e-3, 1e-2)),
        ("tanh,relu", Literal["tanh", "relu"], Choices("tanh", "relu")),
        ("true,false", bool, Choices(True, False)),
        ("[6],[6,6]", list[int], Choices([6], [6, 6])),
    ],
)
def test_ranges_are_read(text: str, annotation: Any, expected: Any) -> None:
    found = read_range(text, annotation, "x")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("given", "annotation", "words"),
    [
        ("1..0.5", float, r"1\.\.0\.5: the range is empty"),
        ("a..b", float, r"x=a\.\.b: must be LOW\.\.HIGH"),
        ("-1..1", NonNegative, r"x=-1\.\.1: -1\.0 is not possible; must be a number >= 0"),
        ("0.5..2", Probability, r"2\.0 is not possible"),
        ("1.5..3", int, r"x=1\.5\.\.3: must be LOW\.\.HIGH"),
        ("64,many", int, r"'many' is not possible; must be a whole number"),
        ("tanh,reluu", Literal["tanh", "relu"], r"'reluu' is not possible; must be one of 'tanh', 'relu'"),
        (5, float, r"x=5: must be LOW\.\.HIGH"),
        ([], float, r"Choices\(\): give at least one value"),
    ],
)
def test_ranges_that_are_not_possible(given: Any, annotation: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_range(given, annotation, "x")


def test_a_log_range_begins_above_zero() -> None:
    with pytest.raises(UserError, match=r"0\.\.1 \(log\): a range over orders of magnitude begins above 0"):
        LogRange(0, 1)


def test_a_declared_range_is_found_within_a_union() -> None:
    found = LogRange(1e-6, 1e-1)
    assert range_of(Annotated[NonNegative, found] | dict[str, float]) == found
    assert range_of(float | None) is None
