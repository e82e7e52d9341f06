"""The response of an update to its gradient equals central differences of torch's own optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, RMSprop

from framework import UserError
from framework.ops.hypergradient import adam_step, check_optimizer, response

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.1, "weight_decay": 0.3}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (Adam, {"lr": 0.1, "weight_decay": 0.3}),
    "adamw": (AdamW, {"lr": 0.1, "weight_decay": 0.3, "betas": (0.8, 0.95), "eps": 1e-3}),
}


def after(kind: str, steps: int, nudge: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Return optimizer, weight before the last step, and weight after it, whose gradient was nudged."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(5, dtype=torch.float64, generator=draw).requires_grad_()
    make, options = KINDS[kind]
    optimizer = make([weight], **options)
    for step in range(steps):
        before = weight.detach().clone()
        weight.grad = torch.randn(5, dtype=torch.float64, generator=draw) + (nudge if step == steps - 1 else 0)
        optimizer.step()
    return optimizer, before, weight


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_central_differences(kind: str, steps: int) -> None:
    optimizer, before, weight = after(kind, steps, torch.zeros(5))
    assert weight.grad is not None
    found = response(optimizer, optimizer.param_groups[0], weight, weight.grad, before)
    h = 1e-6
    up, down = (after(kind, steps, torch.full((5,), sign * h))[2].detach() for sign in (1, -1))
    torch.testing.assert_close(found, (down - up) / (2 * h), rtol=1e-7, atol=1e-9)


def test_an_entry_without_gradient_has_the_limit() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = AdamW([weight], lr=0.1)
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert torch.isfinite(response(optimizer, optimizer.param_groups[0], weight, weight.grad, torch.zeros(1))).all()


def test_adam_for_numbers_is_torchs() -> None:
    value = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    optimizer, own, moments = Adam([value], lr=0.1, eps=1e-12), 0.0, (0.0, 0.0)
    for count, gradient in enumerate((2.0, -1.0, 0.5), start=1):
        value.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        change, *rest = adam_step(gradient, *moments, count, 0.1)
        own, moments = own + change, (rest[0], rest[1])
        assert own == pytest.approx(value.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (RMSprop, {}, r"differentiates SGD, Adam and AdamW; the optimizer is RMSprop"),
        (Adam, {"amsgrad": True}, r"Adam\(amsgrad=True\) is not differentiated"),
        (SGD, {"momentum": 0.9, "dampening": 0.5}, r"SGD\(dampening=0.5\) is not differentiated"),
    ],
)
def test_others_are_refused(make: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_optimizer(make([torch.zeros(1, requires_grad=True)], lr=0.1, **options))
