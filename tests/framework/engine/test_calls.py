"""How networks are called with several inputs, and what is found in their outputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from framework.engine.calls import Call, losses_of, prediction_of

A, B, C = torch.zeros(2), torch.ones(2), torch.tensor([0, 1])


def network(forward: Any) -> nn.Module:
    return type("Net", (nn.Module,), {"forward": forward})()


ONE = network(lambda self, x: x)
TWO = network(lambda self, x, mask=None: x)
NAMED = network(lambda self, input_ids=None, attention_mask=None, labels=None: input_ids)
ANY = network(lambda self, *args, **kwargs: args)


@pytest.mark.parametrize(
    ("net", "x", "args", "named"),
    [
        (ONE, A, (A,), {}),
        (ONE, (A, B), ((A, B),), {}),
        (ONE, {"x": A, "other": B}, ({"x": A, "other": B},), {}),
        (TWO, (A, B), (A, B), {}),
        (TWO, {"x": A, "mask": B}, (), {"x": A, "mask": B}),
        (TWO, (A, B, C), ((A, B, C),), {}),
        (TWO, [A, B], ([A, B],), {}),
        (NAMED, {"input_ids": A}, (), {"input_ids": A}),
        (ANY, {"input_ids": A}, (), {"input_ids": A}),
        (ANY, (A, B), (A, B), {}),
    ],
)
def test_arguments(net: nn.Module, x: Any, args: Any, named: Any) -> None:
    assert str(Call(net).arguments(x)) == str((args, named))


def test_arguments_with_a_target() -> None:
    assert str(Call(NAMED).with_target({"input_ids": A}, C)) == str(((), {"input_ids": A, "labels": C}))
    assert str(Call(network(lambda self, idx, targets=None: idx)).with_target(A, C)) == str(((A,), {"targets": C}))
    assert str(Call(network(lambda self, x, goal: x)).with_target(A, C)) == str(((A, C), {}))
    assert Call(ONE).with_target(A, C) is None


@dataclasses.dataclass
class Output:
    loss: Tensor | None
    logits: Tensor
    hidden: Tensor


def test_predictions() -> None:
    assert prediction_of(A) is A
    assert prediction_of(Output(torch.tensor(1.0), A, B)) is A
    assert prediction_of({"out": A, "aux": B}) is A
    assert prediction_of({"loss": torch.tensor(1.0), "boxes": B}) is B
    several = {"a": A, "b": B}
    assert prediction_of(several) is several
    assert prediction_of((A, B)) == (A, B)


def test_losses() -> None:
    one, two = torch.tensor(1.0), torch.tensor([2.0])
    assert losses_of(one) == {"loss": one} and losses_of(A) == {}
    assert losses_of(Output(one, A, B)) == {"loss": one} and losses_of(Output(None, A, B)) == {}
    assert losses_of((A, one)) == {"loss": one} == losses_of([one, A])
    assert losses_of((one, two)) == {} == losses_of("text")
    assert losses_of({"classification": one, "bbox_regression": two}) == {"classification": one, "bbox_regression": two}
    assert losses_of({"steps": torch.tensor(3)}) == {}
