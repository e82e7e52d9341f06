from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from framework.errors import UserError
from framework.ops.schedules import Behind, Course, Curve, cosine, linear, share_done, warm_up

Made = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


def sgd(*rates: float, momentum: float = 0.0) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (1.0,)]
    for group in groups:
        group["params"][0].grad = torch.zeros(1)
    return torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=momentum)


def rates(scheduler: Any, steps: int) -> list[list[float]]:
    """Return the rates of the next steps, each a list by group, with the momentum."""
    seen = []
    for _ in range(steps):
        seen.append([value for group in scheduler.optimizer.param_groups for value in (group["lr"], group["momentum"])])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def resumed(scheduler: Any, fresh: Any) -> Any:
    """Return a fresh scheduler with the state of another, and its optimizer's, as a resumed run restores them."""
    fresh.optimizer.load_state_dict(copy.deepcopy(scheduler.optimizer.state_dict()))
    fresh.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    return fresh


# ---- closed forms ----------------------------------------------------------------------------------------------------


def test_curves_by_hand() -> None:
    assert [warm_up(s, 3) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warm_up(0, 0) == 1.0
    assert [linear(t, 0.2) for t in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2])
    assert [cosine(t, 0.2) for t in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.2])


def test_one_cycle_by_hand() -> None:
    cycle = Course("one_cycle", "", warmup=4, end=0.1, until=8)
    wanted = [0.04, 0.52 - 0.48 * math.sqrt(0.5), 0.52, 0.52 + 0.48 * math.sqrt(0.5), 1.0]
    assert [cycle(s) for s in range(5)] == pytest.approx(wanted)
    assert [cycle(s) for s in (6, 8, 9)] == pytest.approx([0.55, 0.1, 0.1])


def test_the_share_of_a_fall_by_hand() -> None:
    course = Course("linear", "", warmup=2, until=6)
    assert [course.done(s) for s in (0, 2, 3, 5, 6, 9)] == [0.0, 0.0, 0.25, 0.75, 1.0, 1.0]
    later = Course("linear", "", warmup=2, until=9, since=5, share=0.75)
    assert [later.done(s) for s in (5, 7, 9)] == [0.75, 0.875, 1.0]
    assert [share_done(s, 2, 2) for s in (1, 2, 3)] == [0.0, 1.0, 1.0]


# ---- a curve in a resumed run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "cosine", "one_cycle"])
@pytest.mark.parametrize("until", [8, 12, 40])
def test_a_fall_goes_on_from_where_it_is_to_the_new_end(kind: str, until: int) -> None:
    first = Curve(sgd(1.0, 3.0), Course(kind, "", warmup=2, end=0.01, until=10))
    before = rates(first, 6)
    known = Course(kind, "", warmup=2, end=0.01, until=10)
    second = resumed(first, Curve(sgd(1.0, 3.0), Course(kind, "", warmup=1, end=0.01, until=until)))
    after = rates(second, until - 6 + 3)
    assert [rate for rate, *_ in before] == [known(s) for s in range(6)]
    assert after[0][0] == known(6)
    # t = 1/2 at step 6, and 1 at the new end
    course = linear if kind == "linear" else cosine
    wanted = [course(min(1.0, 0.5 + 0.5 * i / (until - 6)), 0.01) for i in range(len(after))]
    assert [rate for rate, *_ in after] == pytest.approx(wanted)
    assert [other for _, _, other, _ in after] == pytest.approx([3 * rate for rate in wanted])
    # and once more
    third = resumed(second, Curve(sgd(1.0, 3.0), Course(kind, "", warmup=5, end=0.01, until=until)))
    assert third.lr_lambdas[0](until - 1) == second.lr_lambdas[0](until - 1)


@pytest.mark.parametrize("kind", ["linear", "cosine", "one_cycle"])
def test_a_warm_up_goes_on_as_it_began(kind: str) -> None:
    first = Curve(sgd(), Course(kind, "", warmup=4, until=10))
    rates(first, 2)
    second = resumed(first, Curve(sgd(), Course(kind, "", warmup=8, until=20)))
    known = Course(kind, "", warmup=4, until=20)
    assert [rate for rate, _ in rates(second, 18)] == [known(s) for s in range(2, 20)]


def test_lengths_of_steps_stay() -> None:
    first = Curve(sgd(), Course("step", "", warmup=1, gamma=0.5, period=3))
    rates(first, 5)
    second = resumed(first, Curve(sgd(), Course("step", "", warmup=2, gamma=0.5, period=6)))
    assert [rate for rate, _ in rates(second, 6)] == [0.5, 0.25, 0.25, 0.25, 0.125, 0.125]
    first = Curve(sgd(), Course("multi_step", "", gamma=0.5, milestones=(2, 6)))
    rates(first, 5)
    second = resumed(first, Curve(sgd(), Course("multi_step", "", gamma=0.5, milestones=(4, 12))))
    assert [rate for rate, _ in rates(second, 3)] == [0.5, 0.25, 0.25]


def test_what_has_ended_is_refused_where_nothing_would_train() -> None:
    first = Curve(sgd(), Course("cosine", "", until=4))
    rates(first, 4)
    with pytest.raises(UserError, match=r"Schedule\(\): this learning rate schedule came to its end, at 0 of the rate"):
        resumed(first, Curve(sgd(), Course("cosine", "Schedule()", until=8)))
    assert resumed(first, Curve(sgd(), Course("cosine", "", until=4))).last_epoch == 4  # as when it is evaluated
    first = Curve(sgd(), Course("cosine", "", until=4, end=0.3))
    rates(first, 4)
    second = resumed(first, Curve(sgd(), Course("cosine", "", until=8, end=0.3)))
    assert [rate for rate, _ in rates(second, 4)] == [0.3] * 4


def test_a_run_that_now_ends_within_its_warm_up_is_refused() -> None:
    first = Curve(sgd(), Course("cosine", "", warmup=6, until=10))
    rates(first, 3)
    with pytest.raises(UserError, match="a warm-up of 6 and would now end within it; resume with the run's length"):
        resumed(first, Curve(sgd(), Course("cosine", "", warmup=3, until=5)))


def test_a_state_of_an_earlier_version_has_no_course() -> None:
    known = Course("cosine", "", warmup=2, until=10)
    first = lr_scheduler.LambdaLR(sgd(1.0, 2.0), lambda s: known(s))
    rates(first, 5)
    second = resumed(first, Curve(sgd(1.0, 2.0), Course("cosine", "", warmup=2, until=10)))
    assert [rate for rate, *_ in rates(second, 5)] == [known(s) for s in range(5, 10)]


def test_a_group_that_is_added_follows_from_the_next_step_on() -> None:
    known = Course("cosine", "", warmup=2, until=10)
    scheduler = Curve(sgd(1.0), Course("cosine", "", warmup=2, until=10))
    rates(scheduler, 4)
    scheduler.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 3.0})
    after = rates(scheduler, 5)
    assert after[0] == [known(4), 0.0, 3.0, 0.0]
    assert after[1:] == [[known(s), 0.0, 3.0 * known(s), 0.0] for s in range(5, 9)]
    later = sgd(1.0, 3.0)
    again = resumed(scheduler, Curve(later, Course("cosine", "", warmup=2, until=10)))
    assert rates(again, 1) == [[known(9), 0.0, 3.0 * known(9), 0.0]]


def test_a_group_that_is_added_beside_a_class_is_reported() -> None:
    for warmup in (0, 9):
        scheduler = behind("ExponentialLR", warmup)
        rates(scheduler, 2)
        scheduler.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
        with pytest.raises(UserError, match=r"has 3 parameter groups, and had 2 when ExponentialLR was made"):
            rates(scheduler, 1)


# ---- behind a warm-up ------------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Made] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda s: 0.8**s),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda s: 1 - 1 / (s + 2)),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [0, 2, 7]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, 0.75, 6),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 9, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5, 0.01),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, [0.1, 0.2], [1.0, 2.0], 3),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.StepLR(o, 4)], o
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 9), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
}


def behind(kind: str, warmup: int) -> Behind:
    return Behind(SCHEDULERS[kind](sgd(1.0, 3.0, momentum=0.8)), warmup, "Schedule()", {})


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_behind_a_warm_up_it_runs_as_alone(kind: str, warmup: int) -> None:
    alone = rates(SCHEDULERS[kind](sgd(1.0, 3.0, momentum=0.8)), 16)
    found = rates(behind(kind, warmup), 16 + warmup)
    assert found[warmup:] == alone
    for s in range(warmup):
        assert found[s][::2] == pytest.approx([rate * (s + 1) / (warmup + 1) for rate in alone[0][::2]])


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("done", [0, 2, 3, 4, 9])
def test_its_state_is_restored(kind: str, done: int) -> None:
    whole, first = behind(kind, 3), behind(kind, 3)
    wanted = rates(whole, 16)
    rates(first, done)
    second = resumed(first, behind(kind, 5))  # the warm-up keeps its length
    assert rates(second, 16 - done) == wanted[done:]


@pytest.mark.parametrize("done", [0, 2, 3, 4, 9])
def test_a_state_of_an_earlier_version_is_read(done: int) -> None:
    def exponential(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.ExponentialLR(optimizer, 0.9)

    optimizer = sgd()
    rise = lr_scheduler.LambdaLR(optimizer, lambda s: warm_up(s, 3))
    first = lr_scheduler.SequentialLR(optimizer, [rise, exponential(optimizer)], [3])
    rates(first, done)
    second = resumed(first, Behind(exponential(sgd()), 3, "", {}))
    wanted = [(s + 1) / 4 if s < 3 else 0.9 ** (s - 3) for s in range(done, 14)]
    assert [rate for rate, _ in rates(second, 14 - done)] == pytest.approx(wanted)
    alone = exponential(sgd())
    rates(alone, done)
    second = resumed(alone, Behind(exponential(sgd()), 0, "", {}))
    assert [rate for rate, _ in rates(second, 4)] == pytest.approx([0.9 ** (done + i) for i in range(4)])


@pytest.mark.parametrize("old", [True, False])
def test_another_length_is_refused(old: bool) -> None:
    def made(length: int) -> Any:
        inner = lr_scheduler.CosineAnnealingLR(sgd(), length)
        return inner if old and length == 4 else Behind(inner, 0, "Schedule()", {"T_max": length})

    first = made(4)
    rates(first, 2)
    with pytest.raises(UserError, match=r"Schedule\(\): T_max, which follows .* was 4 .* would be 8 now: CosineAnneal"):
        resumed(first, made(8))
    assert resumed(first, Behind(lr_scheduler.CosineAnnealingLR(sgd(), 4), 0, "", {"T_max": 4})).last_epoch == 2


def test_a_cycle_of_torchs_stays_at_its_end() -> None:
    def cycle() -> lr_scheduler.LRScheduler:
        return lr_scheduler.OneCycleLR(sgd(momentum=0.9), 1.0, total_steps=5)

    alone = rates(cycle(), 5)
    assert rates(Behind(cycle(), 0, "", {}), 8) == [*alone, *3 * [alone[-1]]]


def test_rates_that_are_tensors_are_changed_in_place() -> None:
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=torch.tensor(1.0))
    rate = optimizer.param_groups[0]["lr"]
    scheduler = Behind(lr_scheduler.ExponentialLR(optimizer, 0.5), 1, "", {})
    seen = []
    for _ in range(4):
        seen.append(float(rate))
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert seen == [0.5, 1.0, 0.5, 0.25]


class Restarts(lr_scheduler.LRScheduler):
    """Computes every group's rate from its own settings, from 0 on, as some third parties' classes do."""

    def get_lr(self) -> list[Any]:
        return [0.1 * (self.last_epoch % 5) for _ in self.base_lrs]


def test_groups_whose_rates_become_one_are_reported() -> None:
    scheduler = Behind(Restarts(sgd(1.0, 10.0)), 0, "Schedule()", {}, apart=(0, 1))
    with pytest.raises(UserError, match=r"Restarts gives every parameter group the same rate \(0.1\), which undoes"):
        rates(scheduler, 2)
    rates(Behind(Restarts(sgd(1.0, 10.0)), 0, "", {}), 9)  # not asked
    # a floor may unite them later
    rates(Behind(lr_scheduler.CosineAnnealingLR(sgd(1.0, 2.0), 4, 0.5), 0, "", {}, apart=(0, 1)), 9)
