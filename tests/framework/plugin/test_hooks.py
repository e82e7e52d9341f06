"""The list of hook points agrees with the contract."""

from __future__ import annotations

import inspect

from pytorch_lightning import Callback

from framework.plugin import Plugin
from framework.plugin.hooks import HOOK_POINTS, HOOKS, RULES

NO_HOOKS = {"answers_at", "check", "describe", "limits", "settings", "state_key"}


def test_every_hook_point_is_a_documented_method_and_the_other_way_round() -> None:
    methods = {
        name for name, value in vars(Plugin).items() if inspect.isfunction(value) and not name.startswith("_")
    } - NO_HOOKS
    assert methods == set(HOOKS)
    assert all(inspect.getdoc(getattr(Plugin, name)) for name in HOOKS)


def test_names_are_listed_once_and_are_none_of_lightnings() -> None:
    assert len(HOOKS) == len(HOOK_POINTS)
    assert not {name for name in HOOKS if hasattr(Callback, name)}


def test_every_rule_is_explained_and_stands_in_the_methods_docstring() -> None:
    for point in HOOK_POINTS:
        assert point.rule in RULES
        assert f"{point.rule.capitalize()}" in inspect.getdoc(getattr(Plugin, point.name)), point.name


def test_every_hook_point_stands_in_the_training_loop() -> None:
    loop = inspect.getdoc(Plugin)
    assert not {name for name in HOOKS if name not in loop}
