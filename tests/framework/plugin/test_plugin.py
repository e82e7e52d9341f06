"""The contract: what a plugin's class may hold."""

from __future__ import annotations

from typing import Any

import pytest
from pytorch_lightning import Callback

from framework.plugin.plugin import Plugin, overrides


class Decay(Plugin):
    def penalty(self, step: Any) -> None:
        return None


def make_class(**methods: Any) -> type[Plugin]:
    return type("Made", (Plugin,), methods)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("penalyt", "penalty"),
        ("on_trian_start", "on_train_start"),
        ("transform_sampel", "transform_sample"),
        ("edit_weigths", "edit_weights"),
        ("state_dcit", "state_dict"),
    ],
)
def test_misspelt_hooks_fail_when_the_class_is_made(name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"Made.{name} is no hook point: did you mean '{meant}'"):
        make_class(**{name: lambda self, step: None})


def test_a_notice_that_lightning_does_not_have() -> None:
    with pytest.raises(TypeError, match=r"Made.on_moon is no hook point: Lightning has no such hook"):
        make_class(on_moon=lambda self: None)


def test_helpers_with_names_of_their_own_are_fine() -> None:
    made = make_class(rate_at=lambda self, x: x, _penalyt=lambda self: None)
    assert made().rate_at(3) == 3


def test_wrong_arguments_fail_when_the_class_is_made() -> None:
    with pytest.raises(
        TypeError, match=r"Made.penalty takes \(self\), but the hook point is called with \(self, step\)"
    ):
        make_class(penalty=lambda self: None)
    with pytest.raises(TypeError, match=r"\(self, sample, rng\)"):
        make_class(transform_sample=lambda self, sample: sample)


@pytest.mark.parametrize("half", ["weight_penalty", "weight_penalty_gradient"])
def test_half_a_weight_penalty_is_refused(half: str) -> None:
    with pytest.raises(TypeError, match="Made overrides only one of weight_penalty and weight_penalty_gradient"):
        make_class(**{half: lambda self, step: None})


def test_a_subclass_may_change_one_half_of_an_inherited_weight_penalty() -> None:
    both = {"weight_penalty": lambda self, step: None, "weight_penalty_gradient": lambda self, step: None}
    parent = make_class(**both)
    child = type("Child", (parent,), {"weight_penalty": lambda self, step: None})
    assert child.weight_penalty_gradient is parent.weight_penalty_gradient


def test_which_plugin_answers_at_which_hook() -> None:
    class Off(Decay):
        def answers_at(self, hook: str) -> bool:
            return hook != "penalty"

    assert overrides(Decay(), "penalty")
    assert not overrides(Decay(), "transform_batch")
    assert not overrides(Off(), "penalty")
    assert not overrides(Callback(), "penalty")


def test_a_plugin_is_a_lightning_callback() -> None:
    assert isinstance(Decay(), Callback)
