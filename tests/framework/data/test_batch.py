"""Parts of batches, and targets under mixing."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from framework.data import leaves_of
from framework.data.batch import (
    MixedTarget,
    clean_target,
    input_of,
    loss_of,
    map_rest,
    replace,
    rest_of,
    size_of,
    target_of,
)
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


def test_mixed_loss_is_the_weighted_mean_of_losses() -> None:
    prediction = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    partner = torch.tensor([2, 0, 1])
    target = MixedTarget.of(Y).mix(partner, 0.7)
    expected = 0.7 * cross_entropy(prediction, Y) + 0.3 * cross_entropy(prediction, Y[partner])
    torch.testing.assert_close(loss_of(cross_entropy, prediction, target), expected)


def test_mixing_twice_multiplies_weights_which_sum_to_one() -> None:
    first, second = torch.tensor([1, 2, 0]), torch.tensor([0, 2, 1])
    target = MixedTarget.of(X).mix(first, 0.6).mix(second, 0.5)
    assert sum(weight for _, weight in target.pairs) == pytest.approx(1.0)
    by_hand = 0.5 * (0.6 * X + 0.4 * X[first]) + 0.5 * (0.6 * X + 0.4 * X[first])[second]
    torch.testing.assert_close(sum(one * weight for one, weight in target.pairs), by_hand)
    assert target.clean is X
    assert clean_target(target) is X
    assert clean_target(Y) is Y


def test_a_weight_of_zero_asks_for_no_loss() -> None:
    """Else an infinite loss of an unused target would make the sum no number."""
    target = MixedTarget(((torch.zeros(2), 1.0), (torch.full((2,), torch.inf), 0.0)), torch.zeros(2))
    assert loss_of(mse_loss, torch.ones(2), target).item() == 1.0


def test_mixed_target_moves_whole() -> None:
    moved = MixedTarget(((Y, 0.5), (Y, 0.5)), Y).to("meta")
    assert {one.device.type for one, _ in moved.pairs} | {moved.clean.device.type} == {"meta"}


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


@pytest.mark.parametrize("target", [(X, Y), [X, Y], {"a": X, "b": Y}, Placed(X, Y)], ids=lambda t: type(t).__name__)
def test_several_targets_are_mixed_each(target: Any) -> None:
    partner = torch.tensor([2, 0, 1])
    mixed = MixedTarget.of(target).mix(partner, 0.7)
    (own, kept), (other, rest) = mixed.pairs
    assert own is target
    assert type(other) is type(target)
    assert (kept, rest) == pytest.approx((0.7, 0.3))
    assert [torch.equal(a, b[partner]) for a, b in zip(leaves_of(other), leaves_of(target), strict=True)] == [True] * 2
    assert {leaf.device.type for leaf in leaves_of(mixed.to("meta").clean)} == {"meta"}


@pytest.mark.parametrize("target", [(X, torch.zeros(())), (X, torch.zeros(2)), {"a": X, "names": ["a", "b", "c"]}])
def test_targets_without_a_row_for_each_sample_are_not_mixed(target: Any) -> None:
    with pytest.raises(UserError, match="Mixup: mixes targets whose tensors have one row per sample"):
        MixedTarget.of(target).mix(torch.tensor([2, 0, 1]), 0.7, "Mixup")
