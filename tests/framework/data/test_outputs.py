"""What a loss takes the outputs for."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

from framework.data.outputs import outputs_of


def test_the_loss_tells_what_the_outputs_are() -> None:
    assert outputs_of(functools.partial(F.cross_entropy, label_smoothing=0.1)) == "softmax"
    assert outputs_of(nn.BCEWithLogitsLoss(pos_weight=torch.ones(1))) == "bernoulli"
    assert outputs_of(F.huber_loss) == "normal"
    for unknown in (None, lambda p, t: F.mse_loss(p, t), nn.Identity(), F.binary_cross_entropy):
        assert outputs_of(unknown) is None


def test_a_loss_of_ones_own_says_it() -> None:
    class Own(nn.Module):
        outputs = "softmax"

    assert outputs_of(Own()) == "softmax"
