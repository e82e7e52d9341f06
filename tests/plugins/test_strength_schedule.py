from __future__ import annotations

import json
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from framework.engine.core import Core
from framework.errors import UserError
from framework.plugin import Plugin
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from framework.recipe.recipe import Recipe
from framework.run.fit import fit
from framework.settings import NonNegative, PositiveInt
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.strength_schedule import Kind, StrengthSchedule, strength_at


class Watch(Plugin):
    """Reads a strength as a penalty would and keeps what it read."""

    strength: NonNegative = 1.0
    count: PositiveInt = 3
    label: str = "a"

    def attach(self, core: Core) -> None:
        self.seen_: list[float] = []

    def transform_gradients(self, step: Step) -> None:
        self.seen_.append(self.strength)


class Eager(Watch):
    """Reads its strength as a step begins."""

    def begin_step(self, step: Step) -> None:
        self.seen_.append(self.strength)


class Failing(Plugin):
    """Ends a run by an error."""

    def transform_gradients(self, step: Step) -> None:
        if step.index == 3:
            raise RuntimeError("out of luck")


def attached(schedule: StrengthSchedule, *plugins: Plugin) -> StrengthSchedule:
    schedule.attach(types.SimpleNamespace(plugins=[schedule, *plugins]))
    return schedule


def values(schedule: StrengthSchedule, watch: Watch, total: float, steps: int) -> list[float]:
    step = Step(0, WeightEdits())
    step.total = total
    attached(schedule, watch)
    seen = []
    for step.index in range(steps):
        schedule.begin_step(step)
        seen.append(watch.strength)
    return seen


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("linear", [1.0, 1.0, 2.0, 2.5, 4.0, 4.0]),
        ("cosine", [1.0, 1.0, 2.5 - 1.5 * math.cos(math.pi / 3), 2.5, 4.0, 4.0]),
        ("exponential", [1.0, 1.0, 4 ** (1 / 3), 2.0, 4.0, 4.0]),
        ("jump", [1.0, 1.0, 1.0, 1.0, 4.0, 4.0]),
    ],
)
def test_each_way_is_its_closed_form(kind: Kind, wanted: list[float]) -> None:
    found = [strength_at(t, kind, 1.0, 4.0) for t in (-0.5, 0.0, 1 / 3, 0.5, 1.0, 2.0)]
    assert found == pytest.approx(wanted)


def test_shares_and_steps() -> None:
    by_share = StrengthSchedule("watch.strength", start=0.0, end=10.0, begin=0.2, until=0.7)
    assert values(by_share, Watch(), 10, 10) == pytest.approx([0, 0, 0, 2, 4, 6, 8, 10, 10, 10])
    by_step = StrengthSchedule("watch.strength", start=0.0, end=10.0, begin=2, until=7)
    assert values(by_step, Watch(), math.inf, 10) == pytest.approx([0, 0, 0, 2, 4, 6, 8, 10, 10, 10])
    whole = StrengthSchedule("watch.strength", start=0.0, end=10.0)
    assert values(whole, Watch(), 5, 5) == pytest.approx([0, 2, 4, 6, 8])
    at_once = StrengthSchedule("watch.strength", start=0.0, end=10.0, begin=2, until=2)
    assert values(at_once, Watch(), 5, 5) == [0, 0, 10, 10, 10]


def test_the_declared_value_is_the_other_end() -> None:
    assert values(StrengthSchedule("watch.strength", start=0.0, until=4), Watch(2.0), 8, 6) == [0, 0.5, 1, 1.5, 2, 2]
    assert values(StrengthSchedule("watch.strength", end=0.0, until=4), Watch(2.0), 8, 6) == [2, 1.5, 1, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("settings", "done", "total", "wanted"),
    [
        ({}, 4, 20, [4.0 + 6 * i / 16 for i in range(16)]),  # 0.4 of the change is done, the rest takes 16 steps
        ({}, 4, 6, [4.0, 7.0]),
        ({"until": 10}, 4, 20, [*range(4, 10), *10 * [10.0]]),  # steps are steps
        ({"begin": 0.6}, 4, 20, [*9 * [0.0], *(10 * i / 8 for i in range(1, 8))]),
        ({"begin": 0.6}, 6, 8, [0.0, 5.0]),
        ({"until": 0.5}, 8, 20, 12 * [10.0]),  # it has come to its end and stays there
        ({"kind": "jump", "until": 0.5}, 4, 20, [*6 * [0.0], *10 * [10.0]]),
        ({"kind": "jump", "until": 0.5}, 6, 20, 14 * [10.0]),
    ],
)
def test_a_run_of_another_length_goes_on_from_its_value(
    settings: dict[str, Any], done: int, total: int, wanted: list[float]
) -> None:
    def made() -> tuple[StrengthSchedule, Watch]:
        watch = Watch()
        return attached(StrengthSchedule("watch.strength", start=0.0, end=10.0, **settings), watch), watch

    def steps(schedule: StrengthSchedule, watch: Watch, first: int, last: int, total: int) -> list[float]:
        step, seen = Step(0, WeightEdits()), []
        step.total = total
        for step.index in range(first, last):
            schedule.begin_step(step)
            seen.append(watch.strength)
        return seen

    first, same, second = made(), made(), made()
    whole = steps(*made(), 0, 10, 10)
    assert steps(*first, 0, done, 10) == whole[:done]
    same[0].load_state_dict(first[0].state_dict())
    assert steps(*same, done, 10, 10) == whole[done:]
    second[0].load_state_dict(first[0].state_dict())
    second[0].load_state_dict(second[0].state_dict())  # a checkpoint before the first step
    assert steps(*second, done, total, total) == pytest.approx(wanted)
    third = made()  # and once more, with the same length
    third[0].load_state_dict(second[0].state_dict())
    assert steps(*third, total - 1, total, total) == pytest.approx(wanted[-1:])
    assert steps(*second, 0, 10, 10) == whole  # a later phase starts from the beginning


def test_begin_after_until_in_other_units_is_reported() -> None:
    schedule = StrengthSchedule("watch.strength", end=0.0, begin=100, until=0.5)
    with pytest.raises(UserError, match=r"begin=100 is step 100 and until=0.5 is step 25 of this run: begin comes"):
        values(schedule, Watch(), 50, 50)
    assert values(schedule, Watch(), 300, 3) == [1.0] * 3


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": "alpha", "end": 1.0}, "'<plugin>.<setting>'"),
        ({"strength": "watch.strength"}, "would never change"),
        ({"strength": "watch.strength", "end": math.nan}, "end=nan"),
        ({"strength": "watch.strength", "end": 1.0, "begin": 0.7, "until": 0.2}, "begin comes after until"),
        ({"strength": "watch.strength", "end": 1.0, "until": 1.5}, "until must be"),
        ({"strength": "watch.strength", "end": 1.0, "kind": "linar"}, "did you mean 'linear'"),
    ],
)
def test_mistakes_are_reported_when_it_is_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StrengthSchedule(**settings)


@pytest.mark.parametrize(
    ("strength", "settings", "message"),
    [
        ("wach.strength", {}, "no plugin is called 'wach'; did you mean 'watch'"),
        ("watch.strenght", {}, "watch has no number 'strenght'; did you mean 'strength'"),
        ("watch.label", {}, "watch has no number 'label'"),
        ("watch.strength", {"start": -1.0}, r"Watch\(strength=-1.0\): strength must be a number >= 0"),
        ("watch.count", {"end": 4.0}, "count must be a whole number"),
        ("watch.strength", {"kind": "exponential", "start": 0.0}, "needs both above 0"),
    ],
)
def test_mistakes_that_show_with_the_plugins(strength: str, settings: dict[str, Any], message: str) -> None:
    watch = Watch()
    with pytest.raises(UserError, match=message):
        attached(StrengthSchedule(strength, **{"end": 1.0, **settings}), watch)
    assert (watch.strength, watch.count, watch.label) == (1.0, 3, "a")


def test_a_strength_by_pattern_is_moved_by_its_scale() -> None:
    with pytest.raises(UserError, match=r"known: .*scale"):
        attached(StrengthSchedule("norm_penalty.alpha", end=0.0), NormPenalty({"*": 1.0}))
    attached(StrengthSchedule("norm_penalty.scale", end=0.0), NormPenalty({"*": 1.0}))


def test_two_that_move_the_same_are_reported() -> None:
    with pytest.raises(UserError, match="'second' changes it too"):
        attached(
            StrengthSchedule("watch.strength", end=0.0),
            StrengthSchedule("watch.strength", end=0.0, name="second"),
            Watch(),
        )


def test_it_stands_before_a_plugin_that_reads_as_a_step_begins() -> None:
    schedule, eager = StrengthSchedule("eager.strength", end=0.0), Eager()
    with pytest.raises(UserError, match="put 'strength_schedule' before it"):
        schedule.attach(types.SimpleNamespace(plugins=[eager, schedule]))
    attached(schedule, eager)


def test_shares_of_a_run_without_an_end_are_reported() -> None:
    with pytest.raises(UserError, match=r"until=1.0 is a share of a run that has no end"):
        values(StrengthSchedule("watch.strength", end=0.0), Watch(), math.inf, 1)


# ---- real fits -------------------------------------------------------------------------------------------------------


def test_in_a_fit_the_plugin_reads_the_moved_value(core_of: Callable[..., Core], train: Callable[..., object]) -> None:
    watch = Watch(2.0)
    train(core_of(watch, StrengthSchedule("watch.strength", start=0.0)), max_epochs=2)
    assert watch.seen_ == pytest.approx([2.0 * s / 14 for s in range(14)])


def test_a_resumed_run_has_the_same_values(
    core_of: Callable[..., Core], train: Callable[..., object], weights: Callable[[Core], Tensor], tmp_path: Path
) -> None:
    def core() -> Core:
        schedule = StrengthSchedule("norm_penalty.alpha", "cosine", start=0.0, until=0.6)
        return core_of(schedule, NormPenalty(0.5, p=1), Optimizer("SGD", lr=0.1))

    whole, first, second = core(), core(), core()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
    train(whole, max_epochs=3)
    train(first, max_epochs=3, callbacks=[keep], enable_checkpointing=True)
    train(second, max_epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert torch.equal(weights(whole), weights(second))


def test_an_unmoving_way_is_no_schedule(
    core_of: Callable[..., Core], train: Callable[..., object], weights: Callable[[Core], Tensor]
) -> None:
    cores = [
        core_of(NormPenalty(0.1)),
        core_of(StrengthSchedule("norm_penalty.alpha", start=0.1), NormPenalty(0.1)),
    ]
    for core in cores:
        train(core)
    assert torch.equal(weights(cores[0]), weights(cores[1]))


def test_run_json_keeps_what_was_declared(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    plugins = [StrengthSchedule("watch.strength", end=0.0), Watch(2.0)]
    run = fit(recipe(plugins), logs=tmp_path)
    assert run.folder is not None
    record = json.loads((run.folder / "run.json").read_text())
    assert [one["settings"]["strength"] for one in record["plugins"]] == ["watch.strength", 2.0]
    assert plugins[1].strength == 2.0
    assert plugins[1].seen_[-1] < 2.0


def test_the_declared_value_is_back_after_an_error(recipe: Callable[..., Recipe]) -> None:
    plugins = [StrengthSchedule("watch.strength", end=0.0), Watch(2.0), Failing()]
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(recipe(plugins), logs=None)
    assert plugins[1].seen_[-1] < 2.0
    assert plugins[1].strength == 2.0
