"""Sharded tensors; those of ranks are tested with the engine."""

from __future__ import annotations

import torch

from framework.ops.shards import completed, copy_into, is_sharded, laid_out_as, locals_of, whole


def test_a_whole_tensor_is_its_own_part() -> None:
    x = torch.ones(2)
    assert not is_sharded(x)
    assert locals_of([x])[0] is x
    assert completed([x])[0] is x
    assert laid_out_as(x, torch.zeros(2)) is x
    assert whole({"a": [x], "b": 1})["a"][0] is x
    copy_into([x], [torch.tensor([3.0, 4.0])])
    assert x.tolist() == [3.0, 4.0]


def test_whole_looks_into_plain_data_and_leaves_all_else_alone() -> None:
    x, point = torch.ones(2), {1, 2}
    state = {"list": [x, (x, 3)], "set": point, "none": None}
    gathered = whole(state)
    assert gathered is not state
    assert gathered["list"][0] is gathered["list"][1][0] is x
    assert gathered["list"][1] == (x, 3)
    assert gathered["set"] is point
    assert gathered["none"] is None


def test_copies_reach_weights_that_take_gradients_under_inference_mode_too() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    copy_into([weight], [torch.ones(2)])
    assert weight.tolist() == [1.0, 1.0]
    assert weight.grad_fn is None
    kept = torch.zeros(2)
    with torch.inference_mode():
        copy_into([kept], [torch.ones(2)])
    kept.requires_grad_()
    (kept * 2).sum().backward()
    assert kept.tolist() == [1.0, 1.0]
