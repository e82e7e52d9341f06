"""Parts of batches, and targets under mixing."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import NamedTuple

import pytest
import torch

from framework.data.batch import input_of, map_rest, replace, rest_of, size_of, target_of
from framework.errors import UserError

X, Y = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 1])


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], {"input": X, "target": Y}, (X, Y, "more")])
def test_parts_of_a_batch(batch: object) -> None:
    assert input_of(batch) is X
    assert target_of(batch) is Y
    assert size_of(batch) == 3


@pytest.mark.parametrize("batch", [(X, Y, 7), [X, Y, 7], {"input": X, "target": Y, "more": 7}])
def test_replaced_parts_leave_the_batch_as_it_was(batch: object) -> None:
    changed = replace(batch, input=-X)
    assert torch.equal(input_of(changed), -X)
    assert target_of(changed) is Y
    assert input_of(batch) is X
    assert len(changed) == 3
    both = replace(batch, input=-X, target=-Y)
    assert torch.equal(target_of(both), -Y)


def test_a_batch_that_is_one_tensor_is_its_own_input() -> None:
    assert input_of(X) is X
    assert size_of(X) == 3
    assert torch.equal(replace(X, input=-X), -X)


@pytest.mark.parametrize(("batch", "words"), [((X,), "tuple, without target"), ({"ids": X}, "'ids', without target")])
def test_a_batch_without_a_part_is_reported(batch: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        target_of(batch)


def test_samples_of_a_mapping_with_names_of_its_own() -> None:
    assert size_of({"ids": X, "labels": Y}) == 3


class Sample(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor
    weight: int = 7


class Swapped(NamedTuple):
    target: torch.Tensor
    input: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Named:
    weight: int
    target: torch.Tensor
    input: torch.Tensor


@dataclasses.dataclass
class Placed:
    image: torch.Tensor
    label: torch.Tensor


class Plain:
    def __init__(self) -> None:
        self.input, self.target, self.more = X, Y, 7


@pytest.mark.parametrize(
    "batch",
    [
        Sample(X, Y),
        Swapped(Y, X),
        Named(7, Y, X),
        Placed(X, Y),
        Plain(),
        collections.OrderedDict(more=7, target=Y, input=X),
        collections.UserDict(input=X, target=Y),
        types.MappingProxyType({"input": X, "target": Y}),
        [X, Y],
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_a_changed_batch_keeps_its_type(batch: object) -> None:
    assert input_of(batch) is X
    assert target_of(batch) is Y
    changed = replace(batch, input=-X, target=-Y)
    assert type(changed) is type(batch)
    assert torch.equal(input_of(changed), -X)
    assert torch.equal(target_of(changed), -Y)
    assert input_of(batch) is X
    assert target_of(batch) is Y
    assert getattr(changed, "more", 7) == getattr(changed, "weight", 7) == 7


def test_the_rest_is_all_but_the_input_even_where_it_is_the_target_too() -> None:
    for batch in ((X, X), {"target": X, "input": X}, Swapped(X, X), (X, X, 3)):
        changed = map_rest(batch, lambda leaf: leaf + 1)
        assert input_of(changed) is X
        assert torch.equal(target_of(changed), X + 1)
        assert rest_of(batch)[0] is X
    assert rest_of(X) == []
    assert rest_of((X, {"a": 1, "b": [2, "c"]}, None)) == [1, 2, "c", None]
