from __future__ import annotations

import math

import torch
from torch import nn

from framework.ops.finite import finite_weights, first_not_finite


def test_the_first_tensor_that_is_not_finite() -> None:
    good, bad, empty = torch.ones(3), torch.tensor([1.0, -torch.inf]), torch.ones(0)
    assert first_not_finite({}) is None
    assert first_not_finite({"a": good, "n": torch.tensor([2**40]), "e": empty}) is None
    assert first_not_finite({"e": empty, "a": good, "b": bad, "c": bad}) == "b"
    assert first_not_finite({"a": torch.tensor(math.nan), "b": bad}) == "a"
    assert first_not_finite({"largest": torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64)}) is None
    assert first_not_finite({"largest": torch.tensor([torch.finfo(torch.bfloat16).max], dtype=torch.bfloat16)}) is None
    sparse = torch.sparse_coo_tensor([[1]], [math.nan], (3,), check_invariants=True)
    assert first_not_finite({"a": good, "s": sparse}) == "s"


def test_running_statistics_count_as_weights_and_other_buffers_do_not() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].register_buffer("mask", torch.tensor(-math.inf))
    assert finite_weights(model) is None
    model[1].running_var[1] = math.nan
    assert finite_weights(model) == "1.running_var"
    with torch.no_grad():
        model[1].bias[0] = math.inf
    assert finite_weights(model) == "1.bias"
