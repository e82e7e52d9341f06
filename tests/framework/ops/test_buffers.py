from __future__ import annotations

import torch
from torch import nn

from framework.ops.buffers import keep_buffers


def test_buffers_that_changed_are_put_back_and_others_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[0].register_buffer("mask", torch.ones(3))
    model[0].register_buffer("table", torch.ones(3))
    put_back = keep_buffers(model)
    table = model[0].table._version
    loss = model(torch.full((4, 3), torch.nan)).sum()
    model[0].mask.fill_(7.0)
    put_back()
    assert model[0].mask.tolist() == [1.0] * 3
    assert model[1].running_mean.tolist() == [0.0] * 3
    assert model[1].running_var.tolist() == [1.0] * 3
    assert model[1].num_batches_tracked == 0
    assert model[0].table._version == table
    loss.backward()  # a graph that holds statistics stays usable
