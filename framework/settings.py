"""Typed settings: one declaration for constructor, ``run.json``, command line and validation."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from framework.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The interval of numbers that a setting may take: ``low <= value <= high``, or strict where ``open``.

    Args:
        low: smallest value, ``None`` for no lower bound.
        high: largest value, ``None`` for no upper bound.
        open_low: exclude ``low`` itself.
        open_high: exclude ``high`` itself.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def allow(self, value: float) -> bool:
        """Return whether ``value`` lies within the bounds (NaN never does)."""
        if math.isnan(value):
            return False
        if self.low is not None and (value < self.low or (self.open_low and value == self.low)):
            return False
        return self.high is None or not (value > self.high or (self.open_high and value == self.high))

    def __str__(self) -> str:
        parts = []
        if self.low is not None:
            parts.append(f"{'>' if self.open_low else '>='} {self.low:g}")
        if self.high is not None:
            parts.append(f"{'<' if self.open_high else '<='} {self.high:g}")
        return " and ".join(parts) or "a number"


NonNegative = Annotated[float, Bounds(low=0)]
Positive = Annotated[float, Bounds(low=0, open_low=True)]
Probability = Annotated[float, Bounds(low=0, high=1)]
PositiveInt = Annotated[int, Bounds(low=1)]


def check_settings(instance: Any) -> None:
    """Check every field of a dataclass instance against its annotation.

    A scalar of NumPy's is replaced by Python's, see :func:`as_python`.
    Numbers must be finite unless a bound is infinite, lie within :class:`Bounds`, and not be booleans; the value of a
    ``Literal`` must be one of its choices.

    Raises:
        UserError: if a value does not fit; it names class, field, value and what is expected.
    """
    hints = get_type_hints(type(instance), include_extras=True)
    for field in dataclasses.fields(instance):
        value, given = as_python(getattr(instance, field.name), hints[field.name]), getattr(instance, field.name)
        if value is not given:
            object.__setattr__(instance, field.name, value)  # the class may be frozen
        problem = problem_of(hints[field.name], value)
        if problem:
            raise UserError(f"{type(instance).__name__}({field.name}={value!r}): {field.name} must be {problem}")


def as_python(value: Any, annotation: Any = None) -> Any:
    """Return a value with the scalars of NumPy in it as Python's numbers, texts and truth values.

    Lists, tuples and mappings are searched; what holds no such scalar is returned itself. NumPy is not imported.

    Args:
        value: the value.
        annotation: the declared type; a value declared as of a type of NumPy's stays as it is.

    Example:
        >>> import numpy as np
        >>> as_python({"p": np.float32(0.5), "layers": [np.int64(3), "a"]})
        {'p': 0.5, 'layers': [3, 'a']}
    """
    if getattr(annotation, "__module__", None) == "numpy":
        return value
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return float(value) if value.dtype.kind == "f" else value.item()  # item() leaves a longdouble as it is
    if type(value) is list or isinstance(value, tuple):
        items = [as_python(item) for item in value]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        return items if type(value) is list else type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if type(value) is dict:
        new = {key: as_python(item) for key, item in value.items()}
        return new if any(new[key] is not item for key, item in value.items()) else value
    return value


def problem_of(annotation: Any, value: Any) -> str | None:
    """Return what ``value`` should have been, None if it fits ``annotation``; numbers of NumPy's are numbers."""
    value = as_python(value, annotation)
    bounds: tuple[Bounds, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        bounds = tuple(extra for extra in extras if isinstance(extra, Bounds))
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        problems = [problem_of(option, value) for option in get_args(annotation)]
        if any(problem is None for problem in problems):
            return None
        return " or ".join(dict.fromkeys(problem for problem in problems if problem))
    if origin is Literal:
        choices = get_args(annotation)
        if any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
            return None
        hint = did_you_mean(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else ""
        hint = "" if hint.startswith("; known") else hint
        return f"one of {', '.join(map(repr, choices))}{hint}"
    return _problem_of_class(annotation, origin, value, bounds)


def _problem_of_class(annotation: Any, origin: Any, value: Any, bounds: tuple[Bounds, ...]) -> str | None:
    if annotation is type(None):
        return None if value is None else "None"
    if annotation in (float, int):
        kinds = (int, float) if annotation is float else (int,)
        noun = "a number" if annotation is float else "a whole number"
        expected = " and ".join(str(bound) for bound in bounds)
        expected = f"{noun} {expected}" if expected else noun
        if isinstance(value, bool) or not isinstance(value, kinds):
            return expected
        if math.isnan(value) or (math.isinf(value) and not any(math.inf in (b.low, b.high) for b in bounds)):
            return f"a finite {noun[2:]}"
        return None if all(bound.allow(value) for bound in bounds) else expected
    if origin in (dict, Mapping, typing.Mapping):
        return _problem_of_items(annotation, value, Mapping, "a mapping", lambda v: v.values(), -1)
    if origin in (list, Sequence):
        if isinstance(value, str):
            return "a list"
        return _problem_of_items(annotation, value, Sequence, "a list", lambda v: v, 0)
    kind = origin or annotation
    if isinstance(kind, type) and not _is_structural(kind):
        return None if isinstance(value, kind) else f"of type {kind.__name__}"
    return None


def _problem_of_items(annotation: Any, value: Any, kind: type, noun: str, items: Any, which: int) -> str | None:
    if not isinstance(value, kind):
        return noun
    for item in items(value):
        problem = problem_of(get_args(annotation)[which], item)
        if problem:
            return f"{noun} whose every value is {problem}"
    return None


def _is_structural(kind: type) -> bool:
    """Return whether a type is left unchecked: protocols, ``Callable``, tuples and ``Any``."""
    return (
        kind in (Any, object)
        or getattr(kind, "_is_protocol", False)
        or kind.__module__ == "collections.abc"
        or kind is tuple
    )


def plain(value: Any) -> Any:
    """Convert a value to JSON-ready plain data; a value without a plain form becomes its ``repr``.

    Example:
        >>> plain({"p": 2, "layers": ("a", "b")})
        {'p': 2, 'layers': ['a', 'b']}
    """
    value = as_python(value)
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, str):
        return str(value)  # text of the command line too, which is a class of its own
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__, **settings_of(value)}
    return repr(value)


def is_default(field: dataclasses.Field[Any], value: Any, *, as_plain: bool = False) -> bool:
    """Return True if a value is the default of a dataclass field.

    Args:
        field: the field.
        value: the value.
        as_plain: whether ``value`` is plain data, to be compared with the default's plain form.
    """
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is dataclasses.MISSING:
        return False
    if as_plain:
        default = plain(default)
    return bool(value is default or value == default)


def is_plain(value: Any) -> bool:
    """Return whether :func:`plain` preserves a value completely."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


def settings_of(instance: Any) -> dict[str, Any]:
    """Return the settings of a dataclass instance as plain data, in the order of their declaration."""
    return {field.name: plain(getattr(instance, field.name)) for field in dataclasses.fields(instance)}
