"""Ranges in which a setting or a recipe parameter is searched, as ``Annotated[float, LogRange(1e-6, 1e-1)]``."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml

from framework.errors import UserError
from framework.settings import problem_of
from framework.values import Text, read_value


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included, each equally likely before anything is known.

    Args:
        low: smallest value.
        high: largest value.

    Raises:
        UserError: if the range is empty.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise UserError(f"{self}: the range is empty; write the smaller number first")

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"


@dataclasses.dataclass(frozen=True)
class LogRange(Range):
    """Positive numbers from ``low`` to ``high``, each order of magnitude equally likely."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise UserError(f"{self}: a range over orders of magnitude begins above 0")

    def __str__(self) -> str:
        return f"{super().__str__()} (log)"


@dataclasses.dataclass(frozen=True, init=False)
class Choices:
    """The values of a list, without an order.

    Args:
        *values: the values.

    Raises:
        UserError: if there is none.
    """

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        if not values:
            raise UserError("Choices(): give at least one value")
        if twice := next((one for place, one in enumerate(values) if one in values[:place]), None):
            raise UserError(f"Choices: {twice!r} is given twice")
        object.__setattr__(self, "values", values)

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Searched = Range | LogRange | Choices


def range_of(annotation: Any) -> Searched | None:
    """Return the range that a type is annotated with; None if there is none.

    A truth value may be either, and a ``Literal`` without a range is not searched.

    Example:
        >>> range_of(Annotated[float, LogRange(1e-3, 1.0)])
        LogRange(low=0.001, high=1.0)
    """
    if get_origin(annotation) is Annotated:
        return next((extra for extra in get_args(annotation)[1:] if isinstance(extra, (Range, Choices))), None)
    return next((found for one in get_args(annotation) if (found := range_of(one))), None)


def read_range(given: Any, annotation: Any, who: str) -> Searched:
    """Return a range as it was given for a setting or parameter, and check it against the declared type.

    ``LOW..HIGH`` is searched over orders of magnitude if the declared range is, or if none is declared and HIGH is at
    least ten times LOW; ``A,B,C`` are choices.

    Args:
        given: a range, a list of choices, or text.
        annotation: the declared type.
        who: what the range is for, for messages.

    Raises:
        UserError: if it cannot be read, or holds values that the type refuses.

    Example:
        >>> read_range("1e-3..1", float, "x"), read_range("64,128", int, "width")
        (LogRange(low=0.001, high=1.0), Choices(values=(64, 128)))
    """
    if isinstance(given, str):
        found = _parsed(given, annotation, who)
    elif isinstance(given, (Range, Choices)):
        found = given
    elif isinstance(given, (list, tuple)):
        found = Choices(*given)
    else:
        raise UserError(f"{who}={given!r}: must be LOW..HIGH, or choices such as A,B,C")
    for value in found.values if isinstance(found, Choices) else (found.low, found.high):
        if problem := problem_of(annotation, value):
            raise UserError(f"{who}={found}: {value!r} is not possible; must be {problem}")
    return found


def _parsed(text: str, annotation: Any, who: str) -> Searched:
    low, dots, high = text.partition("..")
    whole = whole_numbers(annotation)
    try:
        if dots:
            ends = [int(end) if whole else float(end) for end in (low, high)]
            declared = range_of(annotation)
            log = isinstance(declared, LogRange) if declared else ends[0] > 0 and ends[1] >= 10 * ends[0]
            return (LogRange if log and ends[0] > 0 else Range)(*ends)
        values = yaml.safe_load(f"[{text}]")
    except (ValueError, yaml.YAMLError) as error:
        numbers = " in whole numbers" if whole else ""
        raise UserError(f"{who}={text}: must be LOW..HIGH{numbers}, or choices such as A,B,C") from error
    if not values:
        raise UserError(f"{who}=: names no value; write LOW..HIGH, or choices such as A,B,C")
    return Choices(*(read_value(Text(v) if isinstance(v, str) else v, annotation) for v in values))


def whole_numbers(annotation: Any) -> bool:
    """Return whether a type takes whole numbers only.

    Example:
        >>> whole_numbers(int | None), whole_numbers(float)
        (True, False)
    """
    if get_origin(annotation) is Annotated:
        return whole_numbers(get_args(annotation)[0])
    options = [one for one in get_args(annotation) if one is not type(None)]
    return annotation is int or (
        bool(options) and get_origin(annotation) is not Literal and all(map(whole_numbers, options))
    )
