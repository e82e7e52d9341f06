"""Gradients are those of what they are said to be gradients of."""

from __future__ import annotations

from framework import Plugin
from framework.testing import Check, Status, cases_of, check_named
from tests.wrong_plugins import CAUGHT


def test_wrong_plugin_is_caught_by_the_right_check(wrong: type[Plugin]) -> None:
    (case,) = cases_of(wrong)
    result = check_named(CAUGHT[wrong])(case)
    assert result.status is Status.FAILS
    assert not result.text.startswith("raised"), result.text


def test_bundled_plugin_holds(right: type[Plugin], own_check: Check) -> None:
    own_check(cases_of(right)[0]).require()
