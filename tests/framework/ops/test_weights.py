from __future__ import annotations

import pytest
import torch
from torch import nn

from framework.errors import UserError
from framework.ops.patterns import select_weights
from framework.ops.weights import Weights, split_by_pattern


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 2))


def all_of(model: nn.Module) -> Weights:
    return Weights("*", *map(list, zip(*select_weights(model, who="me").items(), strict=True)))


def test_the_first_pattern_that_matches_a_weight_holds() -> None:
    model = network()
    chosen = select_weights(model, "0,2", who="me")
    parts = split_by_pattern(model, chosen, ["2.*", "*"], who="me")
    assert [(part.pattern, part.names) for part in parts] == [("2.*", ["2.weight"]), ("*", ["0.weight"])]
    assert parts[0].weights[0] is model[2].weight
    for patterns, words in ((["*", "2.*"], "me: pattern '2.*' gets no weight"), (["9"], "matches no weight")):
        with pytest.raises(UserError) as caught:
            split_by_pattern(model, chosen, patterns, who="me")
        assert words in str(caught.value)


@pytest.mark.parametrize(("limit", "sizes"), [(1, [12, 15, 10]), (27, [27, 10]), (100, [37])])
def test_pieces_fit_into_the_cache_or_are_one_weight(limit, sizes, monkeypatch) -> None:
    monkeypatch.setattr("framework.ops.weights._IN_CACHE", limit)
    pieces = list(all_of(network()).cut())
    assert [sum(weight.numel() for weight in piece.weights) for piece in pieces] == sizes
    assert [name for piece in pieces for name in piece.names] == ["0.weight", "1.weight", "2.weight"]


def test_weights_are_split_by_the_parameter_group_that_holds_them() -> None:
    model = network()
    groups = [{"params": [model[2].weight, model[2].bias]}, {"params": []}, {"params": [model[0].weight]}]
    shares = [(index, share.names) for index, share in all_of(model).by_group(groups)]
    assert shares == [(0, ["2.weight"]), (2, ["0.weight"])]


def test_reference_values_go_with_their_weights() -> None:
    weights = all_of(network())
    weights.start = [torch.full_like(weight, index) for index, weight in enumerate(weights.weights)]
    last = weights.only([False, False, True])
    torch.testing.assert_close(last.offset()[0], weights.weights[2] - 2)
    weights.start = []
    assert weights.offset() is weights.weights


def test_frozen_weights_are_left_out_and_unused_ones_get_a_gradient_of_zeros() -> None:
    model = network()
    model[1].weight.requires_grad_(False)
    assert all_of(model).trained().names == ["0.weight", "2.weight"]
    weights = Weights("", ["0.weight", "1.weight"], [model[0].weight, model[1].weight])
    assert weights.trained().names == ["0.weight"]
    assert not model[0].weight.grad.any()
