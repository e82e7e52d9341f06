"""Which parameters train, and in which mode normalization layers are."""

from __future__ import annotations

from torch import nn

from framework.ops.freezing import set_trainable


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.LayerNorm(3), nn.Dropout(), nn.Linear(3, 1))


def test_flags_and_modes() -> None:
    model = net()
    set_trainable(model, set(model[:4].parameters()))
    assert [p.requires_grad for p in model.parameters()] == [False] * 6 + [True] * 2
    assert [layer.training for layer in model] == [True, False, True, True, True]
    set_trainable(model, set(model[0].parameters()))
    assert model[1].training and model[1].weight.requires_grad and not model[0].weight.requires_grad
    set_trainable(model, set(model.parameters()), statistics=True)
    assert model[1].training


def test_a_norm_that_is_partly_frozen_trains_and_one_without_parameters_follows() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 3), nn.BatchNorm1d(3))
    set_trainable(model, {*model[0].parameters(), model[3].bias})
    assert not model[1].training and model[3].training
    assert not model[3].bias.requires_grad and model[3].weight.requires_grad
