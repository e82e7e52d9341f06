"""The contract: what a plugin's class may hold, and what its settings do."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
from pytorch_lightning import Callback

from framework.errors import UserError
from framework.plugin.facts import snake_case
from framework.plugin.plugin import Plugin, overrides
from framework.settings import NonNegative


class Decay(Plugin):
    alpha: NonNegative = 0.1
    kind: Literal["l1", "l2"] = "l2"
    layers: tuple[str, ...] = ()

    def check(self) -> None:
        if self.kind == "l1" and not self.alpha:
            raise UserError("Decay(kind='l1', alpha=0): give a strength")

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


def test_settings_are_constructor_repr_and_plain_data() -> None:
    plugin = Decay(0.5, layers=("a", "b"), name="mine")
    assert repr(plugin) == "Decay(name='mine', alpha=0.5, kind='l2', layers=('a', 'b'))"
    assert plugin.describe() == "Decay(alpha=0.5, layers=('a', 'b'))"
    assert plugin.settings() == {"name": "mine", "alpha": 0.5, "kind": "l2", "layers": ["a", "b"]}
    assert Decay().describe() == "Decay()"


def test_declared_settings_stay_when_a_strength_moves() -> None:
    plugin = Decay(0.5)
    plugin.alpha = 0.1
    assert plugin.declared_["alpha"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"alpha": -1}, r"Decay\(alpha=-1\): alpha must be a number >= 0"),
        ({"alpha": float("nan")}, "alpha must be a finite number"),
        ({"kind": "l3"}, "kind must be one of 'l1', 'l2'"),
        ({"kind": "l1", "alpha": 0}, "give a strength"),
        ({"name": 3}, "name must be of type str"),
    ],
)
def test_wrong_settings(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Decay(**arguments)


def test_an_unknown_setting_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="alhpa"):
        Decay(alhpa=1)


def test_settings_are_inherited_and_added() -> None:
    class Slow(Decay):
        every: int = 2

    assert Slow(0.5, every=3).settings()["every"] == 3
    assert list(Slow().settings()) == ["name", "alpha", "kind", "layers", "every"]


def test_names() -> None:
    assert Decay().name == "decay"
    assert Decay().state_key == "decay"
    assert [snake_case(n) for n in ("KWinners", "SAM", "L2Penalty", "CutMix", "A")] == [
        "k_winners",
        "sam",
        "l2_penalty",
        "cut_mix",
        "a",
    ]


def test_plugins_are_themselves_not_their_settings() -> None:
    """Two equal plugins are two; they serve as keys, and copies are separate."""
    a, b = Decay(), Decay()
    assert a != b
    assert len({a, b}) == 2
    twin = copy.deepcopy(a)
    twin.alpha = 9.0
    assert a.alpha == 0.1


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
