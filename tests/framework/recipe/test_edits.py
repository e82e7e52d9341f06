from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pytorch_lightning.callbacks import Timer

from framework.errors import UserError
from framework.plugin import Plugin
from framework.recipe.edits import apply_edits, name_of
from framework.recipe.recipe import Recipe
from framework.settings import NonNegative
from framework.values import Text
from plugins.input_noise import InputNoise


class Pull(Plugin):
    strength: NonNegative = 0.1
    layers: str | list[str] = "*"


class Push(Plugin):
    force: NonNegative

    before = {"Pull": "one pushes before one pulls"}


class Last(Plugin):
    after = {"Twist": "it sees what was twisted"}


class Twist(Plugin):
    pass


LOCAL = {"pull": Pull, "push": Push, "last": Last, "twist": Twist}


@pytest.fixture
def edited(recipe: Callable[..., Recipe]) -> Callable[..., list[str]]:
    def edit(*plugins: Any, **edits: Any) -> list[str]:
        return [name_of(plugin) for plugin in apply_edits(recipe(plugins), local=LOCAL, **edits).plugins]

    return edit


def test_changes_a_setting_and_leaves_the_recipe_as_it_is(recipe: Callable[..., Recipe]) -> None:
    before = recipe([Pull(0.2), Push(1.0)])
    after = apply_edits(before, {"pull.strength": 0.5})
    assert [plugin.settings() for plugin in after.plugins] == [
        {"name": "pull", "strength": 0.5, "layers": "*"},
        {"name": "push", "force": 1.0},
    ]
    assert before.plugins[0].strength == 0.2
    assert after.plugins[1] is before.plugins[1]


def test_settings_that_need_one_another_are_changed_together(recipe: Callable[..., Recipe]) -> None:
    for order in (1, -1):
        given = dict([("input_noise.kind", "masking"), ("input_noise.rate", 0.1)][::order])
        plugin = apply_edits(recipe([InputNoise(0.2)]), given).plugins[0]
        assert (plugin.kind, plugin.rate) == ("masking", 0.1)


def test_reads_text_by_the_type_of_the_field(recipe: Callable[..., Recipe]) -> None:
    given = {"pull.strength": Text("1e-3"), "pull.layers": Text("[a, b]")}
    plugin = apply_edits(recipe([Pull()]), given).plugins[0]
    assert (plugin.strength, plugin.layers) == (0.001, ["a", "b"])
    assert apply_edits(recipe([Pull()]), {"pull.layers": Text("1")}).plugins[0].layers == "1"


def test_takes_out_then_adds_then_sets(edited: Callable[..., list[str]], recipe: Callable[..., Recipe]) -> None:
    edits = {"without": ["pull"], "with_": [("pull", {"layers": "a"})], "settings": {"pull.strength": 3}}
    assert edited(Pull(), Twist(), **edits) == ["twist", "pull"]
    plugin = apply_edits(recipe([Pull(9.0)]), **edits, local=LOCAL).plugins[-1]
    assert (plugin.strength, plugin.layers) == (3, "a")


def test_an_added_plugin_goes_to_the_end(edited: Callable[..., list[str]]) -> None:
    assert edited(Pull(), with_=[("twist", {})]) == ["pull", "twist"]


def test_an_added_plugin_goes_where_relations_want_it(edited: Callable[..., list[str]]) -> None:
    assert edited(Twist(), Pull(), with_=[("push", {"force": 1})]) == ["twist", "push", "pull"]
    assert edited(Pull(), Last(), with_=[("twist", {})]) == ["pull", "twist", "last"]


def test_another_name_lets_a_class_stand_twice(edited: Callable[..., list[str]]) -> None:
    assert edited(Pull(), with_=[("pull", {"name": "second"})]) == ["pull", "second"]


def test_plain_callbacks_are_named_by_their_class(edited: Callable[..., list[str]]) -> None:
    assert edited(Timer(), Pull(), without=["timer"]) == ["pull"]


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"settings": {"pul.strength": 1}}, "--set pul.strength: the recipe has no plugin 'pul'; did you mean 'pull'?"),
        ({"settings": {"pull.strenght": 1}}, "Pull has no setting 'strenght'; did you mean 'strength'?"),
        ({"settings": {"pull": 1}}, "write it as plugin.field=value"),
        ({"settings": {"pull.strength": -1.0}}, r"Pull\(strength=-1.0\): strength must be a number >= 0"),
        ({"settings": {"pull.strength": Text("nan")}}, r"Pull\(strength=nan\): strength must be a finite number"),
        ({"settings": {"pull.strength": Text("much")}}, r"Pull\(strength='much'\): strength must be a number >= 0"),
        ({"settings": {"timer.duration": 1}}, "timer is a plain Lightning callback"),
        ({"with_": [("psh", {})]}, "no plugin is called 'psh'; did you mean 'push'?"),
        ({"with_": [("push", {})]}, "--with push: Push needs a value for force, as in --with push:force=…"),
        ({"with_": [("push", {"froce": 1})]}, "--with push: Push has no setting 'froce'; did you mean 'force'?"),
        ({"with_": [("pull", {})]}, "already has a plugin of this name; change it with --set pull"),
        ({"without": ["pulll"]}, "--without pulll: the recipe has no plugin 'pulll'; did you mean 'pull'?"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    edited: Callable[..., list[str]], edits: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        edited(Pull(), Timer(), **edits)
    assert "\n" not in str(caught.value)
