"""Plugins that are right but unusual pass; those that are wrong are in tests/wrong_plugins.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from framework import Plugin, Step
from framework.settings import NonNegative
from framework.testing import Check, Status, cases_of, check_named
from tests.wrong_plugins import CAUGHT

NAMES = ("logged", "twice", "adam", "single", "frozen", "metrics", "phases", "modes", "leftovers", "data", "finish")


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Wraps(Plugin):
    """Puts the network into another module."""

    def prepare_model(self, model: nn.Module) -> nn.Module:
        return Wrapper(model)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


class Parametrizes(Plugin):
    """Computes a weight from another one."""

    def prepare_model(self, model: nn.Module) -> nn.Module:
        parametrize.register_parametrization(model.get_submodule("head"), "weight", Half())
        return model


class HeadOnly(Plugin):
    """Freezes everything but the head."""

    def prepare_model(self, model: nn.Module) -> nn.Module:
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.startswith("head"))
        return model


class OnlyLogs(Plugin):
    """Changes nothing and records the norm of the first gradient."""

    every: NonNegative = 1.0

    def transform_gradients(self, step: Step) -> None:
        gradients: list[Any] = [p.grad for group in step.optimizer.param_groups for p in group["params"]]
        step.record("first", torch.linalg.vector_norm(next(one for one in gradients if one is not None)))


@pytest.mark.parametrize("kind", [Wraps, Parametrizes, HeadOnly, OnlyLogs], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_right_but_unusual(kind: type[Plugin], name: str) -> None:
    (case,) = cases_of(kind)
    result = check_named(name)(case)
    assert result.status in (Status.HOLDS, Status.INAPPLICABLE), result


@pytest.mark.parametrize(
    "kind", [kind for kind, name in CAUGHT.items() if name in NAMES], ids=lambda kind: kind.__name__
)
def test_wrong(kind: type[Plugin]) -> None:
    (case,) = cases_of(kind)
    check: Check = check_named(CAUGHT[kind])
    assert check(case).status is Status.FAILS
