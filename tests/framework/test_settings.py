"""Typed settings are checked where they are given."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

from framework.errors import UserError, did_you_mean
from framework.settings import (
    Bounds,
    NonNegative,
    Positive,
    PositiveInt,
    Probability,
    as_python,
    check_settings,
    is_default,
    plain,
    problem_of,
    settings_of,
)

INFINITE = Annotated[float, Bounds(low=1, high=math.inf)]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (float, 1),
        (float, -0.5),
        (NonNegative, 0),
        (Positive, 1e-300),
        (Probability, 0.0),
        (Probability, 1.0),
        (PositiveInt, 1),
        (INFINITE, math.inf),
        (bool, True),
        (str, ""),
        (float | None, None),
        (int | str, "all"),
        (Literal["l1", "l2", 2], 2),
        (list[int], [1, 2]),
        (list[int], (1, 2)),
        (Sequence[str], ("a",)),
        (Mapping[str, NonNegative], {"a": 1.0}),
        (dict[str, float], {}),
        (Callable[[int], int], abs),
        (type[torch.optim.Optimizer], torch.optim.SGD),
        (tuple[float, float], (0.9, 0.999)),
        (Any, object()),
        (Path, Path("a")),
    ],
)
def test_what_fits(annotation: Any, value: Any) -> None:
    assert problem_of(annotation, value) is None


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (float, "1", "a number"),
        (float, True, "a number"),
        (float, math.nan, "a finite number"),
        (float, math.inf, "a finite number"),
        (float, None, "a number"),
        (int, 1.0, "a whole number"),
        (int, True, "a whole number"),
        (NonNegative, -1e-9, "a number >= 0"),
        (Positive, 0, "a number > 0"),
        (Probability, 1.5, "a number >= 0 and <= 1"),
        (PositiveInt, 0, "a whole number >= 1"),
        (Annotated[float, Bounds(0, 1, open_high=True)], 1, "a number >= 0 and < 1"),
        (INFINITE, -math.inf, "a number >= 1 and <= inf"),
        (bool, 1, "of type bool"),
        (str, 1, "of type str"),
        (float | None, "x", "a number or None"),
        (NonNegative | Literal["auto"], "aut", "a number >= 0 or one of 'auto'; did you mean 'auto'?"),
        (Literal["l1", "l2"], "l3", "one of 'l1', 'l2'"),
        (Literal["gaussian", "masking"], "gausian", "one of 'gaussian', 'masking'; did you mean 'gaussian'?"),
        (Literal[1, 2], True, "one of 1, 2"),
        (list[int], 3, "a list"),
        (list[str], "abc", "a list"),
        (list[int], [1, "2"], "a list whose every value is a whole number"),
        (Mapping[str, NonNegative], {"a": -1}, "a mapping whose every value is a number >= 0"),
        (dict[str, float], [], "a mapping"),
        (torch.nn.Module, 3, "of type Module"),
    ],
)
def test_what_does_not_fit(annotation: Any, value: Any, expected: str) -> None:
    assert problem_of(annotation, value) == expected


def test_the_error_names_class_field_and_value() -> None:
    @dataclasses.dataclass
    class Norm:
        alpha: NonNegative = 0.0

    check_settings(Norm(0.5))
    with pytest.raises(UserError) as caught:
        check_settings(Norm(-0.5))
    assert str(caught.value) == "Norm(alpha=-0.5): alpha must be a number >= 0"


def test_plain_data_is_json() -> None:
    @dataclasses.dataclass
    class Part:
        x: Any

    given = {
        "inf": math.inf,
        3: (1, 2.5, None, True),
        "path": Path("a/b"),
        "class": torch.optim.SGD,
        "function": math.sqrt,
        "set": {1},
        "part": Part([Path("c")]),
        "tensor": torch.tensor([1.0]),
    }
    assert json.loads(json.dumps(plain(given), allow_nan=False)) == {
        "inf": "inf",
        "3": [1, 2.5, None, True],
        "path": "a/b",
        "class": "torch.optim.sgd.SGD",
        "function": "math.sqrt",
        "set": [1],
        "part": {"class": "Part", "x": ["c"]},
        "tensor": "tensor([1.])",
    }
    assert settings_of(Part(1)) == {"x": 1}


def test_numpy_and_tensor_numbers_are_distinguished() -> None:
    import numpy as np

    assert problem_of(float, np.float64(0.5)) is None
    assert plain(np.float64(0.5)) == 0.5
    assert problem_of(float, torch.tensor(0.5)) == "a number"


def test_did_you_mean() -> None:
    assert did_you_mean("alhpa", ["alpha", "p"]) == "; did you mean 'alpha'?"
    assert did_you_mean("x", []) == "; known: none"


def test_defaults_are_known_as_values_and_as_plain_data() -> None:
    @dataclasses.dataclass
    class Given:
        required: int
        shape: tuple[int, int] = (1, 2)
        names: list[str] = dataclasses.field(default_factory=lambda: ["a"])

    required, shape, names = dataclasses.fields(Given)
    assert not is_default(required, 1)
    assert is_default(shape, (1, 2))
    assert not is_default(shape, [1, 2])
    assert is_default(shape, [1, 2], as_plain=True)
    assert is_default(names, ["a"])
    assert not is_default(names, [])


@pytest.mark.parametrize(
    ("annotation", "value", "right"),
    [
        (NonNegative, np.float32(0.5), 0.5),
        (Probability, np.float64(0.25), 0.25),
        (float, np.float16(2.0), 2.0),
        (float, np.longdouble(0.5), 0.5),
        (float, np.int64(3), 3),
        (PositiveInt, np.uint8(3), 3),
        (bool, np.bool_(True), True),
        (Literal["a", 2], np.int32(2), 2),
        (float | str | None, np.array(0.5), 0.5),
        (Mapping[str, NonNegative], {"a": np.float32(0.5), "b": np.array(1)}, {"a": 0.5, "b": 1}),
        (Sequence[int], (np.int64(1), 2), (1, 2)),
        (tuple[float, float], (np.float32(0.5), 1.0), (0.5, 1.0)),
        (Any, [np.float32(0.5)], [0.5]),
    ],
)
def test_scalars_of_numpy_become_the_numbers_they_are(annotation: Any, value: Any, right: Any) -> None:
    kind = dataclasses.make_dataclass("Kind", [("field", annotation)], frozen=True)
    assert problem_of(annotation, value) is None
    made = kind(value)
    check_settings(made)
    assert made.field == right and type(made.field) is type(right)
    assert json.dumps(plain(made.field)) == json.dumps(plain(right))


@pytest.mark.parametrize("value", [np.float32(-1.0), np.float32("nan"), np.bool_(True), np.array([0.5]), np.str_("1")])
def test_bounds_hold_for_scalars_of_numpy(value: Any) -> None:
    assert problem_of(NonNegative, value) is not None


def test_what_holds_no_scalar_of_numpy_stays_itself() -> None:
    value, listed, number = torch.tensor(0.5), ["a", (1, 2), {"b": None}], np.float32(0.5)
    assert as_python(value) is value
    assert as_python(listed) is listed
    assert as_python(number, np.float32) is number
    assert problem_of(np.float32, number) is None
