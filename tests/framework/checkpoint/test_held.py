"""Copies of checkpoints in memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from framework.checkpoint import held
from framework.checkpoint.held import copy_of, is_small


def test_nothing_that_is_changed_later_is_shared() -> None:
    model, listed, mapped = nn.Linear(2, 1), [1, [2, 3]], {"a": {"b": {1, 2}}}
    content: dict[str, Any] = {"state_dict": model.state_dict(), "list": listed, "map": mapped, "pair": (1.5, None)}
    copied, before = copy_of(content), model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    listed[1].append(4)  # type: ignore[attr-defined]
    mapped["a"]["b"].add(3)
    content["pair"] = ()
    assert torch.equal(copied["state_dict"]["weight"], before)
    assert copied["list"] == [1, [2, 3]]
    assert copied["map"] == {"a": {"b": {1, 2}}}
    assert copied["pair"] == (1.5, None)


def test_a_copy_has_the_same_kinds() -> None:
    state = nn.BatchNorm1d(2).state_dict()
    copied = copy_of(state)
    assert type(copied) is OrderedDict
    assert list(copied) == list(state)
    assert copied._metadata == state._metadata  # type: ignore[attr-defined]
    half = copy_of({"x": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)})["x"]
    assert (half.dtype, half.requires_grad) == (torch.bfloat16, False)


def test_tensors_of_the_same_memory_stay_so_and_others_apart() -> None:
    weight, flat = torch.ones(3), torch.arange(4.0)
    copied = copy_of({"a": weight, "b": [weight.detach()], "left": flat[:2], "right": flat[2:], "turned": flat[::2]})
    assert copied["a"] is copied["b"][0]
    assert copied["a"] is not weight
    assert [copied[name].tolist() for name in ("left", "right", "turned")] == [[0, 1], [2, 3], [0, 2]]


def test_a_list_of_two_places_stays_one() -> None:
    shared = [{"step": 1}]
    copied = copy_of({"a": shared, "b": {"c": shared}})
    assert copied["a"] is copied["b"]["c"]
    assert copied["a"] is not shared


def test_a_copy_made_in_inference_can_be_changed() -> None:
    with torch.inference_mode():
        copied = copy_of([torch.zeros(2)])
    copied[0].add_(1)
    assert not copied[0].is_inference()


def test_small_is_by_the_bytes_of_the_weights() -> None:
    limit = held._LARGEST // 4
    with torch.device("meta"):
        assert is_small(nn.Linear(limit, 1, bias=False))
        assert not is_small(nn.Linear(limit, 1))
        assert is_small(nn.Linear(limit, 2, bias=False, dtype=torch.bfloat16))
