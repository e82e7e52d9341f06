"""How networks are called with several inputs, and what is found in their outputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from framework.engine.calls import Call, losses_of, prediction_of
from framework.errors import UserError

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
    assert str(Call(network(lambda self, a, b, c: a)).with_target((A, B), C)) == str(((A, B, C), {}))
    own = Call(network(lambda self, x, labels: x))
    assert str(own.with_target({"x": A}, C)) == str(((), {"x": A, "labels": C}))
    with pytest.raises(UserError, match=r"forward takes a, b, labels, and the batch gives 'a', 'z': no parameter"):
        Call(network(lambda self, a, b, labels: a)).with_target({"a": A, "z": B}, C)


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


class Pair(nn.Module):
    def forward(self, left: Any, right: Any, scale: float = 1.0) -> Any:
        return left, right, scale


class Optional(nn.Module):
    def forward(self, input_ids: Any = None, mask: Any = None) -> Any:
        return input_ids, mask


class Whole(nn.Module):
    def forward(self, parts: Any, mask: Any = None) -> Any:
        return parts, mask


class Open(nn.Module):
    def forward(self, left: Any, right: Any, **others: Any) -> Any:
        return left, right, others


@pytest.mark.parametrize(
    ("network", "x", "words"),
    [
        (
            Pair(),
            {"lft": 1, "right": 2},
            r"Pair.forward takes left, right, scale, .* 'lft', 'right': no parameter 'lft';",
        ),
        (Pair(), {"lft": 1, "rght": 2}, "no parameter 'lft', 'rght'; name the inputs by Data"),
        (Pair(), {"left": 1}, "the batch gives 'left': nothing for right;"),
        (Pair(), {0: 1, "right": 2}, "no parameter 0;"),
        (Pair(), {0: 1, 1: 2}, "no parameter 0, 1;"),
        (Pair(), {("a", 1): 1, "left": 2, "right": 3}, r"no parameter \('a', 1\);"),
        (Pair(), (1, 2, 3, 4), "the batch gives 4 inputs; name them by Data"),
        (Optional(), {"input_ids": 1, "idx": 2}, "no parameter 'idx'"),
        (Whole(), {"parts": 1, "maks": 2}, "no parameter 'maks'"),
        (Open(), {"left": 1, "more": 2}, "nothing for right"),
        (Open(), {"left": 1, "right": 2, 3: 4}, "no parameter 3"),
    ],
)
def test_inputs_that_forward_does_not_take(network: nn.Module, x: Any, words: str) -> None:
    call = Call(network)
    for _ in range(2):
        with pytest.raises(UserError, match=words) as caught:
            call.arguments(x)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "x", "expected"),
    [
        (Pair(), {"left": 1, "right": 2}, ((), {"left": 1, "right": 2})),
        (Optional(), {"mask": 1}, ((), {"mask": 1})),
        (Open(), {"left": 1, "right": 2, "more": 3}, ((), {"left": 1, "right": 2, "more": 3})),
        (Whole(), {"a": 1, "mask": 2}, (({"a": 1, "mask": 2},), {})),
        (Whole(), {0: 1, "b": 2}, (({0: 1, "b": 2},), {})),
        (Optional(), {"a": 1}, (({"a": 1},), {})),
        (Whole(), (1, 2, 3), (((1, 2, 3),), {})),
        (Pair(), (1, 2), ((1, 2), {})),
    ],
)
def test_inputs_that_forward_takes(network: nn.Module, x: Any, expected: Any) -> None:
    assert Call(network).arguments(x) == expected
