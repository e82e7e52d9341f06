"""Mixed targets and their loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from framework.data import leaves_of
from framework.data.mixed import MixedTarget, clean_target, loss_of
from framework.errors import UserError

X, Y = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 1])


@dataclasses.dataclass
class Placed:
    image: torch.Tensor
    label: torch.Tensor


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
