"""Frozen parameters and statistics stay, and cost nothing; the kit tests the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, Recipe, UserError, fit
from plugins.freeze import Freeze
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU())
            self.head = nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


def trained(digits: Any, *plugins: Any, **options: Any) -> Net:
    data = Data(digits, digits, batch_size=32)
    trainer = {"max_epochs": 2, "enable_progress_bar": False, "logger": False, **options}
    plugins = (*plugins, Optimizer("AdamW", lr=0.01, weight_decay=0.1))
    net: Net = fit(Recipe(Net(), data, cross_entropy, plugins=list(plugins), trainer=trainer), logs=None).core.model  # type: ignore[assignment]
    return net


@pytest.mark.parametrize("freeze", [Freeze("*", train="head"), Freeze("body.*")])
def test_only_the_head_changes(digits: Any, freeze: Freeze) -> None:
    start, net = Net(), trained(digits, freeze, NormPenalty(alpha=0.1, weights="head*"))
    for name, value in start.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]) == name.startswith("body"), name
    assert [layer.training for layer in net.body] == [True, False, True] or not net.training


def test_statistics_may_follow_the_data(digits: Any) -> None:
    net = trained(digits, Freeze("body.*", statistics=True))
    assert net.body[1].num_batches_tracked == 12 and torch.equal(net.body[1].weight, torch.ones(16))


def test_it_holds_on_two_ranks(digits: Any) -> None:
    net = trained(digits, Freeze("body.*"), devices=2, strategy="ddp_fork")
    assert torch.equal(net.body[0].weight, Net().body[0].weight) and not torch.equal(net.head.weight, Net().head.weight)


@pytest.mark.parametrize(
    ("freeze", "words"),
    [
        (Freeze("bodi.*"), r"Freeze\(weights='bodi.\*'\): pattern 'bodi.\*' matches no parameter of Net"),
        (Freeze("*", train="hed"), "pattern 'hed' matches no parameter"),
        (Freeze("*"), "Net has no parameter to train"),
    ],
)
def test_patterns_that_leave_nothing(digits: Any, freeze: Freeze, words: str) -> None:
    with pytest.raises(UserError, match=words):
        trained(digits, freeze)
