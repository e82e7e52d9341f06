"""How weights and states are compared."""

from __future__ import annotations

import torch

from framework.testing.compare import difference, same_bits


def test_differences() -> None:
    nan = float("nan")
    a, b = torch.tensor([1.0, nan]), torch.tensor([1.0, 2.0])
    assert difference({"w": b}, {"w": b + 0.25}) == 0.25
    assert difference({"w": a}, {"w": b}) == difference({"w": b}, {"v": b}) == float("inf")
    assert same_bits({"w": [a, nan, "x"]}, {"w": [a.clone(), nan, "x"]})
    for other in (b, a.double(), a[:1]):
        assert not same_bits(a, other)
