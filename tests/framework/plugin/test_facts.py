"""What a plugin says about itself: its settings and its name."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest

from framework.errors import UserError
from framework.plugin.facts import snake_case
from framework.plugin.plugin import Plugin
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


def test_a_plugin_moves_and_needs_nothing_unless_it_says_so() -> None:
    plugin = Decay()
    assert (tuple(plugin.moves), plugin.needs_until, dict(plugin.limits())) == ((), 0.0, {})
    assert not plugin.mixes_targets
    for relation in ("before", "after", "requires", "conflicts"):
        assert getattr(Decay, relation) == {}


def test_functions_and_classes_are_described_by_name() -> None:
    class Takes(Plugin):
        what: Any = None

    assert Takes(sorted).describe() == "Takes(what=sorted)"
    assert Takes([dict, 3]).describe() == "Takes(what=[dict, 3])"
