"""Combined predictions by hand, and committees chosen greedily."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch.nn.functional import cross_entropy

from framework.ops.committee import choose, combined


def test_probabilities_are_averaged() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 4, 3, 5, generator=generator)
    weights = [0.25, 0.75]
    torch.testing.assert_close(
        combined([one, other], weights, "softmax").softmax(1), 0.25 * one.softmax(1) + 0.75 * other.softmax(1)
    )
    torch.testing.assert_close(
        combined([one, other], weights, "bernoulli").sigmoid(), 0.25 * one.sigmoid() + 0.75 * other.sigmoid()
    )
    torch.testing.assert_close(combined([one, other], weights, "normal"), 0.25 * one + 0.75 * other)
    assert torch.equal(combined([one, other], [0.0, 1.0], "normal"), other)


def test_sure_predictions_stay_finite() -> None:
    far = torch.tensor([[200.0, -200.0]])
    assert combined([far, -far], [0.5, 0.5], "softmax").softmax(1).tolist() == [[0.5, 0.5]]
    assert combined([far, -far], [0.5, 0.5], "bernoulli").abs().max() < 1


def test_greedy_is_near_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.arange(60) % 3
    right = torch.nn.functional.one_hot(target).float()
    members = [right * 2 + 2 * torch.randn(60, 3, generator=generator) for _ in range(3)]

    def loss_of(weights: Sequence[float]) -> float:
        return float(cross_entropy(combined(members, weights, "softmax"), target))

    found = choose(3, loss_of, rounds=8)
    every = [[a / 8, b / 8, c / 8] for a, b, c in product(range(9), repeat=3) if a + b + c == 8]
    assert loss_of(found) < min(map(loss_of, ([1, 0, 0], [0, 1, 0], [0, 0, 1])))
    assert loss_of(found) == pytest.approx(min(map(loss_of, every)), rel=0.02)
    assert sum(found) == pytest.approx(1)


def test_one_that_does_not_help_is_left_out() -> None:
    assert choose(2, lambda w: w[1], rounds=5) == [1.0, 0.0]
