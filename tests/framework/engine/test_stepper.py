"""Steps below torch's wrapper are the optimizer's own, and all registered hooks are called."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from framework.engine.stepper import Stepper
from framework.ops.muon import Muon


def problem(cls: type[torch.optim.Optimizer], **options: Any) -> tuple[Tensor, torch.optim.Optimizer]:
    weight = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
    return weight, cls([{"params": [weight], **options}], lr=0.1)  # type: ignore[call-arg]


def walk(weight: Tensor, step: Callable[[], Any], steps: int = 5) -> Tensor:
    for _ in range(steps):
        weight.grad = weight.detach() ** 2
        step()
    return weight.detach()


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the steps that went through torch's wrapper."""
    names: list[str] = []
    theirs = torch.autograd.profiler.record_function

    def record(name: str, *args: Any) -> Any:
        names.append(name)
        return theirs(name, *args)

    monkeypatch.setattr(torch.autograd.profiler, "record_function", record)
    return names


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam, Muon])
def test_steps_are_the_optimizers_own(cls: Any, through: list[str]) -> None:
    options = {"use_muon": True} if cls is Muon else {}
    (one, ours), (other, theirs) = problem(cls, **options), problem(cls, **options)
    assert torch.equal(walk(one, Stepper(ours)), walk(other, theirs.step))
    assert not torch.equal(one, torch.linspace(-1, 1, 12).view(3, 4))
    inner = 10 if cls is Muon else 0  # it moves matrices by torch's optimizer of the same name
    assert through.count(f"Optimizer.step#{cls.__name__}.step") == inner + 1 + 5  # the first of ours, and all of theirs


def test_hooks_hear_every_step_from_when_they_are_there() -> None:
    weight, optimizer = problem(torch.optim.AdamW)
    step = Stepper(optimizer)
    told: list[str] = []
    walk(weight, step, 2)
    handles = [
        optimizer.register_step_pre_hook(lambda *_: told.append("own pre")),
        optimizer.register_step_post_hook(lambda *_: told.append("own post")),
        register_optimizer_step_pre_hook(lambda *_: told.append("pre")),
        register_optimizer_step_post_hook(lambda *_: told.append("post")),
    ]
    try:
        walk(weight, step, 1)
        for place, handle in enumerate(handles[:3]):
            handle.remove()
            told.clear()
            walk(weight, step, 1)
            assert len(told) == 3 - place
    finally:
        for handle in handles:
            handle.remove()
    told.clear()
    walk(weight, step, 1)
    assert told == []


def test_a_profiler_sees_the_steps() -> None:
    weight, optimizer = problem(torch.optim.SGD)
    step = Stepper(optimizer)
    walk(weight, step, 2)
    with torch.profiler.profile() as profile:
        walk(weight, step, 3)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step#SGD.step"] == 3


def test_a_schedule_knows_that_steps_are_made() -> None:
    weight, optimizer = problem(torch.optim.SGD)
    schedule = StepLR(optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walk(weight, Stepper(optimizer), 2)
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_step_that_somebody_put_in_is_the_one_taken() -> None:
    weight, optimizer = problem(torch.optim.SGD)
    before = Stepper(optimizer)
    walk(weight, before, 2)
    told: list[str] = []
    optimizer.step = lambda: told.append("theirs")  # type: ignore[method-assign, assignment, misc]
    walk(weight, before, 1)
    walk(weight, Stepper(optimizer), 2)
    assert told == 3 * ["theirs"]
