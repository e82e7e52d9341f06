"""A recipe's parts are checked when it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric

from framework.data import Data
from framework.engine.core import Core
from framework.errors import UserError
from framework.plugin import Plugin
from framework.recipe.recipe import Recipe, check_trainer_options, lightning_options


class Nothing(Plugin):
    pass


@pytest.fixture
def parts(data: Data, mlp: Callable[..., nn.Module]) -> dict[str, Any]:
    return {"model": mlp(), "data": data, "loss": cross_entropy}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": nn.Linear}, r"Recipe\(model=...\): must be a torch.nn.Module; received type"),
        ({"data": (1, 2)}, r"Recipe\(data=...\): must be a framework.Data; received tuple"),
        (
            {"loss": nn.CrossEntropyLoss},
            r"Recipe\(loss=...\): received the class CrossEntropyLoss; write CrossEntropyLoss",
        ),
        ({"loss": "mse"}, r"Recipe\(loss='mse'\): must be callable"),
        ({"core": nn.Module}, "must be framework.Core or a subclass"),
        ({"core": "Core"}, r"Recipe\(core='Core'\)"),
        ({"mode": "minimum"}, "must be 'min' or 'max'"),
        ({"plugins": [Nothing]}, "is neither a framework.Plugin nor a Lightning callback"),
        ({"plugins": Nothing()}, r"Recipe\(plugins=...\): must be a list"),
        ({"metrics": {"a": 3}}, "'a' must be a torchmetrics.Metric; received 3"),
        (
            {"trainer": {"max_epoch": 3}},
            "trainer.max_epoch: Lightning's Trainer has no such option; did you mean 'max_e",
        ),
    ],
)
def test_mistakes(parts: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Recipe(**{**parts, **changes})


def test_the_core_gets_its_share_of_the_trainers_options(parts: dict[str, Any]) -> None:
    plugin = Nothing()
    recipe = Recipe(**parts, plugins=[plugin, pl.callbacks.LearningRateMonitor()])
    core = recipe.make_core(3, {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5, "max_epochs": 3})
    assert type(core) is Core
    assert (core.seed, core.accumulate, core.plugins) == (3, 4, [plugin])
    assert lightning_options({"accumulate_grad_batches": 4, "gradient_clip_val": 1, "max_epochs": 3}) == {
        "max_epochs": 3
    }


@pytest.mark.parametrize("accumulate", [0, -1, 2.5, True, "2", {0: 2}])
def test_accumulation_is_a_whole_number(parts: dict[str, Any], accumulate: Any) -> None:
    with pytest.raises(UserError, match=r"trainer.accumulate_grad_batches="):
        Recipe(**parts).make_core(0, {"accumulate_grad_batches": accumulate})


def test_known_options() -> None:
    check_trainer_options({"max_epochs": 1, "precision": "bf16-mixed"})


@pytest.mark.parametrize("name", ["loss", "objective", "skipped_steps", "", 3])
def test_a_metric_has_a_name_of_its_own(parts: dict[str, Any], name: Any) -> None:
    with pytest.raises(UserError, match=rf"Recipe\(metrics=...\): {name!r}.*another name|must be a text"):
        Recipe(**parts, metrics={name: MeanMetric()})
