"""What is known of a run before training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from framework.data import Data
from framework.engine.core import Core
from framework.plugin import Plan, Plugin
from framework.recipe.lint import plan_of
from framework.recipe.recipe import Recipe


@pytest.mark.parametrize(
    ("options", "validations"),
    [
        ({"check_val_every_n_epoch": 2}, 5),
        ({"val_check_interval": 0.25}, 40),
        ({"val_check_interval": 2}, 35),  # of 7 steps an epoch
        ({"max_steps": 28}, 4),
        ({"max_steps": 28, "accumulate_grad_batches": 2}, 7),
        ({"max_epochs": None}, 1000),
        ({"max_epochs": None, "max_time": "00:01:00:00"}, math.inf),
        ({"max_epochs": -1}, math.inf),
        ({"max_epochs": -1, "max_steps": 70}, 10),
        ({"limit_val_batches": 0}, 0),
    ],
)
def test_how_many_validations_a_run_has(
    options: dict[str, Any], validations: float, recipe: Callable[..., Recipe]
) -> None:
    made = recipe(trainer={"max_epochs": 10, **options})
    assert plan_of(made, made.make_core(0, made.trainer), made.trainer).validations == validations


def plan(core: Core, data: Data, **known: Any) -> Plan:
    return Plan(core, {"max_epochs": 10}, data=data, **known)


def test_decays_are_those_of_the_groups_as_plugins_make_them(core_of: Callable[..., Core], data: Data) -> None:
    class Splits(Plugin):
        def group_parameters(self, groups: Any) -> Any:
            named = [pair for group in groups for pair in group["params"]]
            matrices = [pair for pair in named if pair[1].ndim > 1]
            return [
                {"params": matrices, "weight_decay": 0.1},
                {"params": [pair for pair in named if pair[1].ndim <= 1]},
            ]

    core = core_of(Splits())
    decays = plan(core, data).decays
    assert {name: decays[p] for name, p in core.model.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "2.weight": 0.1,
        "2.bias": 0.0,
    }


@pytest.mark.parametrize(("drop_last", "epochs"), [(False, 4), (True, 28 / 6)])
def test_epochs_of_so_many_steps(core_of: Callable[..., Core], data: Data, drop_last: bool, epochs: float) -> None:
    core, cut = core_of(), Data(data.train, data.val, batch_size=16, drop_last=drop_last)
    assert Plan(core, {"max_epochs": 10, "max_steps": 28}, data=cut).epochs == epochs


@pytest.mark.parametrize(
    ("tag", "known", "why"),
    [
        ("val/loss", {}, None),
        ("val/accuracy", {"metrics": ["accuracy"]}, None),
        ("val/accuracy", {"open_tags": True}, None),
        ("penalty/l1", {}, None),
        ("val/accuracy", {}, "never logged"),
        ("train/loss", {}, "never logged"),
        ("val/los", {}, "never logged; did you mean 'val/loss'? (logged are: val/loss)"),
    ],
)
def test_why_a_tag_is_never_logged(
    core_of: Callable[..., Core], data: Data, tag: str, known: dict[str, Any], why: str | None
) -> None:
    told = plan(core_of(), data, **known).why_never_logged(tag, "val")
    assert told is None if why is None else told.startswith(why)


def test_without_a_validation_its_tags_are_never_logged(core_of: Callable[..., Core]) -> None:
    alone = plan(core_of(), Data((torch.zeros(4), torch.zeros(4))), open_tags=True)
    assert alone.validations == 0
    for tag in ("val/loss", "gap/loss"):
        assert alone.why_never_logged(tag, "val", "train", "gap").startswith("the run has no validation")
    assert alone.why_never_logged("train/loss", "val", "train", "gap") is None
