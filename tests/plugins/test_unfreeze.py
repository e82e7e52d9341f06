"""Stages are thawed on time, on every rank, and after a resume as without it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, Interrupted, LintWarning, Recipe, Run, UserError, fit
from plugins.optimizer import Optimizer
from plugins.unfreeze import Unfreeze
from plugins.weight_average import WeightAverage


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 10))


class Watch(pl.Callback):
    """Notes at each step which layers train and whether the norm does, and checks gradients."""

    def __init__(self, stop: int = -1) -> None:
        self.seen: list[str] = []
        self.stop = stop

    def on_before_optimizer_step(self, trainer: pl.Trainer, core: Any, optimizer: Any) -> None:
        net = core.model
        for layer in (net[0], net[3], net[4]):
            assert (layer.weight.grad is not None) is layer.weight.requires_grad
        self.seen.append("".join(str(int(layer.weight.requires_grad)) for layer in (net[0], net[3], net[4])))
        assert net[1].training is net[0].weight.requires_grad

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.stop:
            os.kill(os.getpid(), signal.SIGINT)


def trained(digits: Any, plugin: Unfreeze, *more: Any, watch: Watch | None = None, **options: Any) -> Run:
    keys = {"logs": options.pop("logs", None), "resume": options.pop("resume", False)}
    x, y = digits
    data = Data((x[:120], y[:120]), (x[120:], y[120:]), batch_size=options.pop("batch_size", 40))
    net = options.pop("net", None) or network()
    trainer = {"max_epochs": 4, "enable_progress_bar": False, "callbacks": [watch] if watch else [], **options}
    plugins = [plugin, *more, Optimizer("SGD", lr=0.1, options={"momentum": 0.9})]
    return fit(Recipe(net, data, cross_entropy, plugins=plugins, trainer=trainer), **keys)


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        (Unfreeze(), ["001"] * 3 + ["011"] * 3 + ["111"] * 6),
        (Unfreeze(every=2), ["001"] * 6 + ["011"] * 6),
        (Unfreeze(every=5, unit="steps"), ["001"] * 5 + ["011"] * 5 + ["111"] * 2),
        (Unfreeze(["4", "*"], every=2), ["001"] * 6 + ["111"] * 6),
        (Unfreeze(["4", "3"], every=1), ["001"] * 3 + ["011"] * 9),
    ],
)
@pytest.mark.filterwarnings("ignore:.*the last of 3 stages:framework.LintWarning")
def test_stages(digits: Any, plugin: Unfreeze, expected: list[str]) -> None:
    watch = Watch()
    trained(digits, plugin, watch=watch)
    assert watch.seen == expected


@pytest.mark.parametrize("plugin", [Unfreeze(), Unfreeze(every=4, unit="steps"), Unfreeze(patience=1)])
@pytest.mark.parametrize("step", [2, 4, 8])
def test_a_killed_run_goes_on_to_the_same_bits(digits: Any, tmp_path: Path, plugin: Unfreeze, step: int) -> None:
    average = WeightAverage(decay=0.5)
    whole = trained(digits, plugin, average, logs=tmp_path / "whole")
    with pytest.raises(Interrupted) as caught:
        trained(digits, plugin, average, logs=tmp_path / "cut", watch=Watch(step))
    watch = Watch()
    again = trained(digits, plugin, average, logs=tmp_path / "cut", resume=caught.value.run.folder, watch=watch)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.core.model.state_dict().values(), again.core.model.state_dict().values(), strict=True)
    )
    assert whole.last == again.last and len(watch.seen) == 12 - step


def test_a_plateau_thaws(digits: Any) -> None:
    watch = Watch()
    run = trained(digits, Unfreeze(patience=1), watch=watch, limit_val_batches=1)
    values = [entry.metrics["val/loss"] for entry in run.core.recorder.history if "val/loss" in entry.metrics]
    stages, best = 1, float("inf")
    expected = []
    for value in values:
        expected += [["001", "011", "111"][stages - 1]] * 3
        stages, best = (stages, value) if value < best else (min(stages + 1, 3), best)
    assert watch.seen == expected


@pytest.mark.parametrize("plugin", [Unfreeze(), Unfreeze(["4", "3,0", "*"]), Unfreeze(patience=1)])
def test_two_ranks_are_as_one(digits: Any, plugin: Unfreeze) -> None:
    def run(**how: Any) -> Run:
        net = nn.Sequential(nn.Linear(64, 16), nn.Identity(), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 10))
        net.load_state_dict(network().state_dict(), strict=False)
        return trained(digits, plugin, WeightAverage(decay=0.5), net=net, **how)

    one, two = run(), run(devices=2, strategy="ddp_fork", accumulate_grad_batches=1, batch_size=20)
    assert one.steps == two.steps == 12
    for a, b in zip(one.core.model.parameters(), two.core.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_stage_that_is_never_reached_is_told(digits: Any) -> None:
    with pytest.warns(LintWarning, match="the last of 3 stages begins after 6 epochs, the run has 4"):
        trained(digits, Unfreeze(every=3))


def test_patterns_that_match_nothing(digits: Any) -> None:
    with pytest.raises(UserError, match="matches no parameter"):
        trained(digits, Unfreeze(["hed"]))
