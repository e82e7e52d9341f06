"""Parsing of values given as text or plain data by their declared type."""

from __future__ import annotations

import argparse
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from framework.settings import Bounds, as_python, problem_of


class Text(str):
    """A value as typed on the command line, not yet parsed by its declared type."""


def as_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """Mark the strings among values from ``run.json`` as text, to be parsed by type again."""
    return {name: Text(value) if isinstance(value, str) else value for name, value in values.items()}


def read_value(value: Any, annotation: Any) -> Any:
    """Convert text or plain data to a declared type; a value that already fits is returned as it is.

    Args:
        value: :class:`Text`, plain data as ``run.json`` keeps it, or a value of the right type.
        annotation: the declared type.

    Returns:
        The parsed value; for text that does not fit the type, its value as YAML, which a later check can report.

    Example:
        >>> read_value(Text("1e-3"), float), read_value(Text("[64, 64]"), list[int]), read_value(Text("1"), str)
        (0.001, [64, 64], '1')
        >>> read_value(Text("many"), int)
        'many'
    """
    value = as_python(value, annotation)
    typed = isinstance(value, Text)
    # JSON turns tuples into lists
    listed = isinstance(value, list) and any((get_origin(one) or one) is tuple for one in _options(annotation))
    fits = problem_of(annotation, value) is None and not listed
    if not typed and (fits or not isinstance(value, (str, list, dict))):
        return value
    scalar = _scalar(value) if typed else value
    try:
        read = _parsed(value, annotation)
    except (argparse.ArgumentError, ValueError):
        return scalar
    # in a union of text and numbers, such as Trainer's devices, text that looks like a number is meant as one
    if typed and isinstance(read, str) and type(scalar) in _options(annotation):
        return scalar
    return read


def misfit(value: Any, annotation: Any) -> str | None:
    """Return what ``value`` should have been, None if it fits; jsonargparse decides where our own rules do not apply.

    Example:
        >>> misfit("many", int), misfit(3, int)
        ('a whole number', None)
    """
    problem = problem_of(annotation, value)
    if problem is not None or not isinstance(value, (str, list, dict)):
        return problem
    try:
        _parsed(value, annotation)
    except (argparse.ArgumentError, ValueError):
        return f"of type {type_name(annotation)}"
    return None


def type_name(annotation: Any) -> str:
    """Return a short name of a type.

    Example:
        >>> type_name(Annotated[float, Bounds(low=0)] | None), type_name(list[int])
        ('float >= 0 | None', 'list[int]')
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [str(extra) for extra in args[1:] if isinstance(extra, Bounds)]
        return " ".join([type_name(args[0]), *bounds])
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_name, args))
    if origin is Literal:
        return " | ".join(map(repr, args))
    if annotation is type(None):
        return "None"
    if annotation is Ellipsis:
        return "..."
    if isinstance(annotation, list):  # the arguments of a Callable
        return f"[{', '.join(map(type_name, annotation))}]"
    name = getattr(origin or annotation, "__name__", str(annotation))
    return f"{name}[{', '.join(map(type_name, args))}]" if args else name


def _parsed(value: Any, annotation: Any) -> Any:
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    if isinstance(value, Text):
        return parser.parse_args([f"--value={value}"]).value
    return parser.parse_object({"value": value}).value


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return str(text)
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            return value
    return value


def _options(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
