from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
import torch
from pytorch_lightning import Trainer

from framework.settings import Bounds
from framework.values import Text, misfit, read_value, type_name

Rate = Annotated[float, Bounds(low=0, high=1)]


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("1e-3", float, 1e-3),
        ("3", int, 3),
        ("3", str, "3"),
        ("0.5", Rate | None, 0.5),
        ("null", Rate | None, None),
        ("true", bool, True),
        ("[1, 2]", tuple[int, ...], (1, 2)),
        ("{a: 1e-3}", Mapping[str, float], {"a": 1e-3}),
        ("fc1,fc2", str | Sequence[str], "fc1,fc2"),
        ("[fc1, fc2]", str | Sequence[str], ["fc1", "fc2"]),
        ("b", Literal["a", "b"], "b"),
        ("~/x", Path, Path("~/x")),
        ("torch.optim.SGD", type[torch.optim.Optimizer], torch.optim.SGD),
        ("[1, x]", Any, [1, "x"]),
    ],
)
def test_text_is_read_by_its_type(text: str, annotation: Any, value: Any) -> None:
    read = read_value(Text(text), annotation)
    assert read == value
    assert type(read) is type(value)
    assert misfit(read, annotation) is None


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("devices", "2", 2),
        ("devices", "auto", "auto"),
        ("devices", "[0, 1]", [0, 1]),
        ("precision", "bf16-mixed", "bf16-mixed"),
        ("max_epochs", "3", 3),
        ("limit_train_batches", "0.5", 0.5),
        ("fast_dev_run", "true", True),
        ("deterministic", "warn", "warn"),
        ("strategy", "ddp", "ddp"),
        ("max_time", "00:01:00:00", "00:01:00:00"),
        ("logger", "false", False),
    ],
)
def test_reads_options_of_the_trainer(option: str, text: str, value: Any) -> None:
    read = read_value(Text(text), get_type_hints(Trainer.__init__)[option])
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation", "problem"),
    [
        ("much", float, "a number"),
        ("2.5", int, "a whole number"),
        ("1.5", Rate, "a number >= 0 and <= 1"),
        ("1", bool, "of type bool"),
        ("c", Literal["a", "b"], "one of 'a', 'b'"),
        ("nothing.there", Callable[[int], int], "of type Callable[[int], int]"),
        ("1,2", tuple[int, int], "of type tuple[int, int]"),
    ],
)
def test_says_what_a_value_should_have_been(text: str, annotation: Any, problem: str) -> None:
    assert misfit(read_value(Text(text), annotation), annotation) == problem


def test_plain_data_is_read_only_where_it_does_not_fit() -> None:
    assert read_value("0.05", float) == 0.05
    assert read_value("0.05", str | float) == "0.05"
    assert read_value("/tmp", Path | None) == Path("/tmp")
    thing = object()
    assert read_value(thing, float) is thing


@pytest.mark.parametrize("annotation", [tuple[int, ...], tuple[int, int], tuple, tuple[int, ...] | None])
def test_lists_are_read_as_the_tuples_that_they_were(annotation: Any) -> None:
    assert read_value([1, 2], annotation) == (1, 2)
    assert read_value([1, 2], list[int]) == [1, 2]


def test_types_have_short_names() -> None:
    annotation = dict[str, Rate] | Callable[..., torch.Tensor] | None
    assert type_name(annotation) == "dict[str, float >= 0 and <= 1] | Callable[..., Tensor] | None"
    assert type_name(Literal["a", 2]) == "'a' | 2"
