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
from plugins.schedule import Schedule, Span, scheduler_class


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
        # torch's cycle is at its top at step pct_start * total_steps - 1, this one at step warmup
        (
            {"kind": "one_cycle"},
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=40, pct_start=13 / 40, cycle_momentum=False),
        ),
        (
            {"kind": "one_cycle", "warmup": 11, "end": 0.04 / 10},
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=40, cycle_momentum=False, final_div_factor=10.0),
        ),
        (
            {"kind": "one_cycle", "warmup": 38},
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=40, pct_start=39 / 40, cycle_momentum=False),
        ),
    ],
)
def test_each_curve_is_torchs(settings: dict[str, Any], reference: Callable[[Any], Any]) -> None:
    optimizer = sgd()
    wanted = rates(reference(optimizer), optimizer, 40)
    assert curve(Schedule(**settings), 40) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("steps", [5, 10, 39, 100])
def test_one_cycle_ends_as_torchs(steps: int) -> None:
    optimizer = sgd()
    reference = lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, cycle_momentum=False)
    wanted, found = rates(reference, optimizer, steps), curve(Schedule("one_cycle"), steps)
    assert (found[0], found[-1]) == pytest.approx((wanted[0], wanted[-1]), rel=1e-9)
    assert found[-1] == pytest.approx(4e-6)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [1.0]),
        ({}, [1.0, 4e-6]),
        ({"warmup": 0.9}, [1.0, 4e-6]),
        ({"end": 0.1}, [0.04, 1.0, 0.1]),
        ({"warmup": 0.9, "end": 0.1}, [0.04, 1.0, 0.1]),
        ({"warmup": 2, "end": 0.1}, [0.04, 0.52, 1.0, 0.1]),
    ],
)
def test_one_cycle_over_a_few_steps(settings: dict[str, Any], wanted: list[float]) -> None:
    assert curve(Schedule("one_cycle", **settings), len(wanted)) == pytest.approx(wanted)


LENGTHLESS: list[dict[str, Any]] = [
    {"kind": "constant"},
    {"kind": "step", "period": 90},
    {"kind": "multi_step", "milestones": [90]},
    {"kind": "exponential", "gamma": 1.0},
]
FALLING: list[dict[str, Any]] = [{"kind": kind} for kind in ("linear", "cosine", "one_cycle")]
CLASSES: list[dict[str, Any]] = [{"kind": "CosineAnnealingLR"}, {"kind": "StepLR", "options": {"step_size": 9}}]


@pytest.mark.parametrize("settings", LENGTHLESS)
def test_a_warm_up_of_the_whole_run_rises_to_its_end(settings: dict[str, Any]) -> None:
    for warmup in (1.0, 8):
        assert curve(Schedule(warmup=warmup, **settings), 8) == pytest.approx([(s + 1) / 9 for s in range(8)])


@pytest.mark.parametrize("settings", [*LENGTHLESS, *FALLING, *CLASSES], ids=lambda one: str(one["kind"]))
def test_a_warm_up_that_leaves_nothing_is_refused(settings: dict[str, Any]) -> None:
    too_long: list[Any] = [9, 40] if settings in LENGTHLESS else [1.0, 8, 9, 40]
    for warmup in too_long:
        with pytest.raises(UserError, match=rf"warmup={warmup}\): the run has 8 steps in all; shorten the warm-up"):
            curve(Schedule(warmup=warmup, **settings), 8)
    with pytest.raises(UserError, match="the run has 3 epochs in all"):
        curve(Schedule(warmup=4, interval="epoch", **settings), 24, batches=8)


@pytest.mark.parametrize("settings", [*LENGTHLESS, *FALLING, *CLASSES], ids=lambda one: str(one["kind"]))
@pytest.mark.parametrize("warmup", [0, 0.0, 0.01])
def test_a_warm_up_of_nothing_is_none(settings: dict[str, Any], warmup: float) -> None:
    if settings["kind"] != "one_cycle" or warmup:  # where 0 means 0.3
        assert curve(Schedule(warmup=warmup, **settings), 8)[0] == 1.0


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


@pytest.mark.parametrize(("warmup", "left"), [(0, 40), (0.4, 24), (39, 1)])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_class_gets_the_length_that_the_warm_up_leaves(warmup: float, left: int, interval: str) -> None:
    optimizer = sgd()
    wanted = rates(lr_scheduler.CosineAnnealingLR(optimizer, left), optimizer, left)
    total = 40 if interval == "step" else 395  # the last epoch of 10 steps ends early
    found = curve(Schedule("CosineAnnealingLR", warmup=warmup, interval=interval), total, 40)
    assert found[40 - left :] == wanted
    assert found[: 40 - left] == pytest.approx([(s + 1) / (41 - left) for s in range(40 - left)])


def test_a_class_keeps_the_length_that_it_is_given() -> None:
    optimizer = sgd()
    wanted = rates(lr_scheduler.CosineAnnealingLR(optimizer, 7), optimizer, 20)
    assert curve(Schedule("CosineAnnealingLR", options={"T_max": 7}), 20) == wanted
    options = {"max_lr": 1.0, "epochs": 6, "steps_per_epoch": 5, "cycle_momentum": False}
    wanted = rates(lr_scheduler.OneCycleLR(optimizer, **options), optimizer, 20)
    assert curve(Schedule("OneCycleLR", options=options), 20) == wanted
    for given in ({"total_steps": 19}, {"epochs": 3, "steps_per_epoch": 6}):
        with pytest.raises(UserError, match=r"its 1. steps are fewer than the 20 steps of the run; leave total_steps"):
            curve(Schedule("OneCycleLR", options={"max_lr": 1.0, "cycle_momentum": False, **given}), 20)


def grouped(*scales: float) -> torch.optim.Optimizer:
    weights = [nn.Parameter(torch.zeros(1)) for _ in scales]
    for weight in weights:
        weight.grad = torch.zeros(1)
    groups = [{"params": [weight], "lr": 0.1 * scale} for weight, scale in zip(weights, scales, strict=True)]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def by_group(plugin: Schedule, optimizer: torch.optim.Optimizer, steps: int) -> list[list[float]]:
    plugin.attach(types.SimpleNamespace(trainer=types.SimpleNamespace(num_training_batches=10)))
    scheduler = plugin.make_scheduler(optimizer, steps)["scheduler"]
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


class Cycle(lr_scheduler.CyclicLR):
    """A subclass of someone else's."""


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("OneCycleLR", {"max_lr": 0.5}),
        ("OneCycleLR", {"max_lr": 0.5, "three_phase": True, "cycle_momentum": False}),
        ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.5, "step_size_up": 4}),
        (Cycle, {"base_lr": 0.01, "max_lr": 0.5, "step_size_up": 4}),
        ("MultiplicativeLR", {"lr_lambda": lambda s: 0.9}),
        ("LinearLR", {}),
        ("CosineAnnealingLR", {}),
        ("PolynomialLR", {"total_iters": 30}),
    ],
)
def test_groups_keep_their_factors_under_a_class(kind: Any, options: dict[str, Any]) -> None:
    scales = (1.0, 10.0, 0.0, 0.5)
    alone = by_group(Schedule(kind, options=options), grouped(1.0), 20)
    found = by_group(Schedule(kind, options=options), grouped(*scales), 20)
    for rates, (rate,) in zip(found, alone, strict=True):
        assert rates == pytest.approx([rate * scale for scale in scales], rel=1e-9, abs=1e-15)


def test_rates_given_group_by_group_are_those() -> None:
    found = by_group(Schedule("OneCycleLR", options={"max_lr": [0.5, 0.5]}), grouped(1.0, 10.0), 20)
    assert all(one == other for one, other in found)


class Restarts(lr_scheduler.LRScheduler):
    """Computes every group's rate from its own setting, as some third parties' classes do."""

    def __init__(self, optimizer: torch.optim.Optimizer, max_lr: float) -> None:
        self.max_lr = max_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        return [self.max_lr / (1 + self.last_epoch % 5) for _ in self.base_lrs]


def test_a_class_that_erases_groups_is_refused() -> None:
    plugin = Schedule(Restarts, options={"max_lr": 0.5})
    for scales in ((1.0, 10.0), (1.0, 1.0, 0.0), (0.0, 1.0)):
        with pytest.raises(UserError, match="Restarts gives every parameter group the same rate"):
            by_group(plugin, grouped(*scales), 20)
    assert by_group(plugin, grouped(1.0, 1.0), 20)[1] == [0.25, 0.25]
    with pytest.raises(UserError, match=r"eta_min=0.05 is above the rate 0.01 of one of the optimizer's groups"):
        by_group(Schedule("CosineAnnealingLR", options={"eta_min": 0.05}), grouped(1.0, 0.1), 20)


def test_a_subclass_of_plateau_is_one() -> None:
    class Patient(lr_scheduler.ReduceLROnPlateau):
        """A subclass of someone else's."""

    plugin = Schedule(Patient, monitor="val/error", options={"patience": 3})
    config = plugin.make_scheduler(sgd(), -1)
    assert (config["monitor"], config["interval"], type(config["scheduler"])) == ("val/error", "epoch", Patient)
    with pytest.raises(UserError, match="does not read warmup"):
        Schedule(Patient, warmup=3)


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
        ({"kind": "OneCycleLR", "options": {"max_lr": 1.0, "epochs": 3}}, 40, "total_steps OR"),
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
    ("settings", "reference"),
    [
        ({"kind": "CosineAnnealingLR"}, lambda o, n: lr_scheduler.CosineAnnealingLR(o, n)),
        ({"kind": "cosine"}, lambda o, n: lr_scheduler.CosineAnnealingLR(o, n)),
        ({"kind": "linear"}, lambda o, n: lr_scheduler.LinearLR(o, 1.0, 0.0, n)),
        (
            {"kind": "OneCycleLR", "options": {"max_lr": 0.2}},
            lambda o, n: lr_scheduler.OneCycleLR(o, [0.2, 0.6], total_steps=n),
        ),
    ],
)
@pytest.mark.parametrize(
    ("options", "accumulate", "steps", "epochs"),
    [({"max_epochs": 3}, 1, 21, 3), ({"max_epochs": 4}, 3, 12, 4), ({"max_epochs": 9, "max_steps": 10}, 1, 10, 2)],
)
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_in_a_fit_the_rates_are_torchs(
    core_of: Callable[..., Core],
    train: Callable[..., object],
    settings: dict[str, Any],
    reference: Callable[[Any, int], Any],
    options: dict[str, Any],
    accumulate: int,
    steps: int,
    epochs: int,
    interval: str,
) -> None:
    optimizer = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.1, 0.3)], momentum=0.9
    )
    scheduler = reference(optimizer, steps if interval == "step" else epochs)
    wanted = []
    for step in range(steps):
        wanted.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        if interval == "step" or (step + 1) % -(-7 // accumulate) == 0:
            scheduler.step()
    watch = Watch()
    ours = Optimizer("SGD", lr=0.1, options={"momentum": 0.9}, groups={"2": {"lr_scale": 3.0}})
    train(core_of(watch, ours, Schedule(interval=interval, **settings), accumulate=accumulate), **options)
    assert len(watch.rates_) == steps
    for found, rates in zip(watch.rates_, wanted, strict=True):
        assert found == pytest.approx(rates, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("epochs", [2, 5])
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_run_resumed_with_other_epochs_falls_to_its_new_end(
    core_of: Callable[..., Core], train: Callable[..., object], tmp_path: Path, epochs: int, interval: str
) -> None:
    def core() -> Core:
        return core_of(Watch(), Optimizer("SGD", lr=1.0), Schedule("linear", interval=interval))

    first, second = core(), core()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
    train(first, max_epochs=4, callbacks=[keep], enable_checkpointing=True)
    train(second, max_epochs=epochs, ckpt_path=tmp_path / "epoch=0.ckpt")
    found = [rate for (rate,) in second.plugins[0].rates_]
    left = 7 * (epochs - 1)
    steps = [s if interval == "step" else s - s % 7 for s in range(left)]
    assert found == pytest.approx([0.75 * (1 - s / left) for s in steps])  # a quarter of the first run is done


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosine"}, r"Schedule\(kind='cosine'\): this learning rate schedule came to its end"),
        ({"kind": "one_cycle"}, r"Schedule\(kind='one_cycle'\): this learning rate schedule came to its end"),
        ({"kind": "CosineAnnealingLR"}, r"T_max, which .* was 7 .* would be 14 now"),
        ({"kind": "CosineAnnealingLR", "warmup": 2}, r"T_max, which .* was 5 .* would be 12 now"),
        ({"kind": "OneCycleLR", "options": {"max_lr": 1.0, "cycle_momentum": False}}, "total_steps, which .* was 7"),
        (
            {"kind": "OneCycleLR", "options": {"max_lr": 1.0, "cycle_momentum": False, "total_steps": 7}},
            "its 7 steps are fewer than the 14 steps",
        ),
    ],
)
def test_an_ended_run_whose_curve_cannot_go_on_is_refused(
    core_of: Callable[..., Core], train: Callable[..., object], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    def core() -> Core:
        return core_of(Optimizer("SGD", lr=1.0), Schedule(**settings))

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_on_train_epoch_end=True)
    train(core(), max_epochs=1, callbacks=[keep], enable_checkpointing=True)
    with pytest.raises(UserError, match=message):
        train(core(), max_epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")


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
