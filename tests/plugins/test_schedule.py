from __future__ import annotations

import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import lr_scheduler

from framework.engine.core import Core
from framework.errors import UserError
from framework.plugin import Plugin
from framework.plugin.step import Step
from framework.values import Text, read_value
from plugins.optimizer import Optimizer
from plugins.schedule import Schedule, Span, cosine, linear, one_cycle, scheduler_class, warm_up


class Halving(lr_scheduler.LRScheduler):
    """A scheduler of someone else's."""

    def __init__(self, optimizer: torch.optim.Optimizer, every: int, last_epoch: int = -1) -> None:
        self.every = every
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        return [base * 0.5 ** (self.last_epoch // self.every) for base in self.base_lrs]


class Watch(Plugin):
    """Keeps the learning rates of every step."""

    def attach(self, core: Core) -> None:
        self.rates_: list[list[float]] = []

    def transform_gradients(self, step: Step) -> None:
        assert step.optimizer is not None
        self.rates_.append([group["lr"] for group in step.optimizer.param_groups])


def sgd(lr: float = 1.0) -> torch.optim.Optimizer:
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    return torch.optim.SGD([weight], lr=lr)


def rates(scheduler: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def curve(plugin: Schedule, total: int, steps: int | None = None, *, batches: int = 10) -> list[float]:
    optimizer = sgd()
    trainer = types.SimpleNamespace(num_training_batches=batches)
    plugin.attach(types.SimpleNamespace(trainer=trainer))
    config = plugin.make_scheduler(optimizer, total)
    return rates(config["scheduler"], optimizer, steps or total)


# ---- closed forms ----------------------------------------------------------------------------------------------------


def test_curves_by_hand() -> None:
    assert [warm_up(s, 3) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warm_up(0, 0) == 1.0
    assert [linear(t, 0.2) for t in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2])
    assert [cosine(t, 0.2) for t in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.2])
    assert [one_cycle(t, 0.5, 0.1) for t in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0.04, 0.52, 1.0, 0.55, 0.1])


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"kind": "constant"}, lambda s: 1.0),
        ({"kind": "constant", "warmup": 4}, lambda s: min(1.0, (s + 1) / 5)),
        ({"kind": "linear", "end": 0.1}, lambda s: 1 - 0.9 * s / 40),
        ({"kind": "cosine"}, lambda s: (1 + math.cos(math.pi * s / 40)) / 2),
        (
            {"kind": "cosine", "warmup": 0.25, "end": 0.01},
            lambda s: (s + 1) / 11 if s < 10 else 0.01 + 0.99 * (1 + math.cos(math.pi * (s - 10) / 30)) / 2,
        ),
        ({"kind": "linear", "warmup": 8}, lambda s: (s + 1) / 9 if s < 8 else (40 - s) / 32),
        ({"kind": "step", "period": 12, "gamma": 0.5}, lambda s: 0.5 ** (s // 12)),
        ({"kind": "step", "period": 0.25, "warmup": 3}, lambda s: min(1, (s + 1) / 4) * 0.1 ** (s // 10)),
        ({"kind": "multi_step", "milestones": [0.5, 30]}, lambda s: 1.0 if s < 20 else 0.1 if s < 30 else 0.01),
        ({"kind": "exponential", "gamma": 0.9}, lambda s: 0.9**s),
        ({"kind": "exponential", "gamma": 0.9, "warmup": 5}, lambda s: (s + 1) / 6 if s < 5 else 0.9 ** (s - 5)),
    ],
)
def test_each_kind_is_its_closed_form(settings: dict[str, Any], factor: Callable[[int], float]) -> None:
    assert curve(Schedule(**settings), 40) == pytest.approx([factor(s) for s in range(40)], rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"kind": "cosine", "end": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, 40, eta_min=0.1)),
        ({"kind": "linear", "end": 0.3}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.3, 40)),
        ({"kind": "step", "period": 7}, lambda o: lr_scheduler.StepLR(o, 7)),
        ({"kind": "multi_step", "milestones": [9, 21]}, lambda o: lr_scheduler.MultiStepLR(o, [9, 21])),
        ({"kind": "exponential", "gamma": 0.95}, lambda o: lr_scheduler.ExponentialLR(o, 0.95)),
        # torch ends its cycle at the last step, this one after it, as the other curves do: one step more there
        (
            {"kind": "one_cycle", "warmup": 0.3, "end": 0.04 / 1e4},
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=41, pct_start=13 / 41, cycle_momentum=False),
        ),
    ],
)
def test_each_curve_is_torchs(settings: dict[str, Any], reference: Callable[[Any], Any]) -> None:
    optimizer = sgd()
    wanted = rates(reference(optimizer), optimizer, 40)
    assert curve(Schedule(**settings), 40) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_after_the_end_the_rate_stays_where_it_is() -> None:
    assert curve(Schedule("cosine", end=0.1), 10, 14)[10:] == pytest.approx([0.1] * 4)
    assert curve(Schedule("one_cycle", end=0.1), 10, 14)[10:] == pytest.approx([0.1] * 4)


def test_one_cycle_rises_over_three_tenths_by_default() -> None:
    assert curve(Schedule("one_cycle"), 40) == curve(Schedule("one_cycle", warmup=12), 40)
    assert max(curve(Schedule("one_cycle"), 40)) == curve(Schedule("one_cycle"), 40)[12] == 1.0


def test_per_epoch_the_run_is_counted_in_epochs() -> None:
    found = curve(Schedule("cosine", interval="epoch", warmup=2), 78, 8, batches=10)
    assert found == pytest.approx([1 / 3, 2 / 3, *((1 + math.cos(math.pi * e / 6)) / 2 for e in range(6))])


# ---- schedulers of torch's and of others -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "filled_in"),
    [
        ("PolynomialLR", {"total_iters": 30, "power": 2.0}, {}),
        (lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 8}, {}),
        ("torch.optim.lr_scheduler.StepLR", {"step_size": 3}, {}),
        ("CosineAnnealingLR", {}, {"T_max": 40}),
        ("OneCycleLR", {"max_lr": 2.0, "cycle_momentum": False}, {"total_steps": 40}),
        (Halving, {"every": 5}, {}),
    ],
)
def test_any_scheduler_class(kind: Any, options: dict[str, Any], filled_in: dict[str, Any]) -> None:
    optimizer = sgd()
    reference = scheduler_class(kind)(optimizer, **options, **filled_in)
    assert curve(Schedule(kind, options=options), 40) == rates(reference, optimizer, 40)


def test_a_warm_up_comes_before_any_scheduler_class() -> None:
    found = curve(Schedule(Halving, warmup=4, options={"every": 3}), 16)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, *(0.5 ** (s // 3) for s in range(12))])


def test_a_plateau_waits_for_its_metric() -> None:
    optimizer = sgd()
    plugin = Schedule("plateau", options={"patience": 1, "factor": 0.5}, monitor="val/error")
    config = plugin.make_scheduler(optimizer, -1)
    assert config["interval"] == "epoch"
    assert config["monitor"] == "val/error"
    seen = []
    for value in (1.0, 0.5, 0.6, 0.7, 0.7, 0.7):
        config["scheduler"].step(value)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosin"}, "did you mean 'cosine'"),
        ({"kind": "ExponentialLr"}, "did you mean 'ExponentialLR'"),
        ({"kind": "torch.optim.lr_scheduler.Nope"}, "no attribute 'Nope'"),
        ({"kind": nn.Linear}, "kind must be"),
        ({"warmup": -1}, "warmup must be a whole number >= 0 or a number >= 0 and <= 1"),
        ({"warmup": 500.0}, "warmup must be"),
        ({"end": math.nan}, "end=nan"),
        ({"gamma": 0.5}, "cosine does not read gamma, only warmup, end; leave it out"),
        ({"options": {"T_max": 3}}, "cosine does not read options"),
        ({"monitor": "val/accuracy"}, "cosine does not read monitor"),
        ({"kind": "plateau", "warmup": 3}, "plateau does not read warmup"),
        ({"kind": "plateau", "options": {"patiense": 3}}, "did you mean 'patience'"),
        ({"kind": "OneCycleLR", "warmup": 3}, "does not read warmup"),
        ({"kind": "step"}, "step needs period"),
        ({"kind": "step", "period": 0.0}, "period must be"),
        ({"kind": "multi_step"}, "multi_step needs milestones"),
        ({"kind": "exponential"}, "exponential needs gamma"),
        ({"interval": "steps"}, "did you mean 'step'"),
    ],
)
def test_mistakes_are_reported_when_it_is_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Schedule(**settings)


@pytest.mark.parametrize(
    ("settings", "total", "message"),
    [
        ({}, -1, "the run has no end; set the trainer's max_epochs"),
        ({"kind": "constant", "warmup": 0.1}, -1, r"warmup=0.1\): the run has no end"),
        ({"kind": "OneCycleLR", "options": {"max_lr": 1.0}}, -1, "no end"),
        ({"warmup": 40}, 40, "the run has 40 steps in all; shorten the warm-up"),
        ({"kind": "StepLR"}, 40, "step_size"),
        ({"kind": "OneCycleLR", "options": {"max_lr": 1.0, "pct_start": 7}}, 40, "pct_start, but got 7"),
    ],
)
def test_mistakes_that_show_with_the_run(settings: dict[str, Any], total: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        curve(Schedule(**settings), total, 4)


@pytest.mark.parametrize("settings", [{"kind": "constant", "warmup": 3}, {"kind": "step", "period": 5}])
def test_kinds_that_need_no_end_run_without(settings: dict[str, Any]) -> None:
    assert len(curve(Schedule(**settings), -1, 7)) == 7


def test_spans_are_read_from_the_command_line() -> None:
    assert [read_value(Text(text), Span) for text in ("500", "0.05", "1", "1.0")] == [500, 0.05, 1, 1.0]
    assert isinstance(read_value(Text("500"), Span), int)
    assert isinstance(read_value(Text("1.0"), Span), float)


# ---- real fits -------------------------------------------------------------------------------------------------------


def test_in_a_fit_every_group_follows_the_curve(core_of: Callable[..., Core], train: Callable[..., object]) -> None:
    watch = Watch()
    optimizer = Optimizer("SGD", lr=0.1, groups={"2": {"lr_scale": 3.0}})
    train(core_of(watch, optimizer, Schedule("cosine", warmup=0.2)), max_epochs=2)
    factors = [min(1, (s + 1) / 4) * (1 + math.cos(math.pi * max(s - 3, 0) / 11)) / 2 for s in range(14)]
    assert [first for first, _ in watch.rates_] == pytest.approx([0.1 * factor for factor in factors])
    assert [second for _, second in watch.rates_] == pytest.approx([0.3 * factor for factor in factors])


def test_in_a_fit_per_epoch(core_of: Callable[..., Core], train: Callable[..., object]) -> None:
    watch = Watch()
    schedule = Schedule("linear", interval="epoch")
    train(core_of(watch, Optimizer("SGD", lr=0.3), schedule), max_epochs=3)
    assert [rate for (rate,) in watch.rates_] == pytest.approx([0.3] * 7 + [0.2] * 7 + [0.1] * 7)


def test_in_a_fit_a_plateau_lowers_the_rate(core_of: Callable[..., Core], train: Callable[..., object]) -> None:
    watch = Watch()
    schedule = Schedule("plateau", options={"patience": 0, "factor": 0.5, "threshold": 10.0, "threshold_mode": "abs"})
    train(core_of(watch, Optimizer("SGD", lr=0.1), schedule), max_epochs=4)
    # no epoch is better than the first by 10: each later one halves the rate
    assert [rate for (rate,) in watch.rates_[::7]] == pytest.approx([0.1, 0.1, 0.05, 0.025])


def test_a_plateau_of_an_unknown_metric_is_reported(core_of: Callable[..., Core], train: Callable[..., object]) -> None:
    with pytest.raises(UserError, match="val/acuracy"):
        train(core_of(Schedule("plateau", monitor="val/acuracy")))


@pytest.mark.parametrize(
    "settings",
    [{"kind": "cosine", "warmup": 3}, {"kind": Halving, "warmup": 3, "options": {"every": 2}}, {"kind": "plateau"}],
)
def test_a_resumed_run_has_the_same_rates(
    core_of: Callable[..., Core],
    train: Callable[..., object],
    weights: Callable[[Core], Tensor],
    tmp_path: Path,
    settings: dict[str, Any],
) -> None:
    def core() -> Core:
        return core_of(Watch(), Optimizer("Muon", lr=0.05), Schedule(**settings))

    whole, first, second = core(), core(), core()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
    train(whole, max_epochs=3)
    train(first, max_epochs=3, callbacks=[keep], enable_checkpointing=True)
    train(second, max_epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert whole.plugins[0].rates_[7:] == second.plugins[0].rates_
    assert torch.equal(weights(whole), weights(second))
