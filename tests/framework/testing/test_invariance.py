"""A step is the same however it is split, and a run however it is cut."""

from __future__ import annotations

import itertools

import pytest

from framework import Plugin
from framework.plugin.registry import registered
from framework.testing import Case, Check, Status, cases_of, check_named
from tests.wrong_plugins import CAUGHT, SeedsByRank


def test_wrong_plugin_is_caught_by_the_right_check(wrong: type[Plugin]) -> None:
    (case,) = cases_of(wrong)
    result = check_named(CAUGHT[wrong])(case)
    assert result.status is Status.FAILS
    assert not result.text.startswith("raised"), result.text


def test_bundled_plugin_holds(right: type[Plugin], own_check: Check) -> None:
    own_check(cases_of(right)[0]).require()


@pytest.mark.parametrize("kind", [kind for kind, name in CAUGHT.items() if name == "micro"], ids=lambda k: k.__name__)
def test_two_ranks_catch_what_micro_batches_catch(kind: type[Plugin]) -> None:
    (case,) = cases_of(kind)
    assert check_named("ranks")(case).status is Status.FAILS


PAIRS = list(itertools.combinations([cases_of(entry.load())[0] for entry in registered()], 2))


# two ranks take two micro-batches each: what is wrong over micro-batches is wrong here
@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda case: case.plugin.name)
def test_every_pair_of_plugins_is_the_same_however_a_step_is_split(one: Case, other: Case) -> None:
    def beside() -> list[Plugin]:
        listed = {plugin.name: plugin for plugin in (other.make(), *one.companions(), *other.companions())}
        return [plugin for plugin in listed.values() if plugin.name != one.plugin.name]

    result = check_named("ranks")(Case(one.make, companions=beside))
    result.require()
    assert result.status is not Status.INAPPLICABLE


def test_no_limit_covers_ranks_that_fall_apart() -> None:
    class Excused(SeedsByRank):
        def limits(self) -> dict[str, str]:
            return {"ranks": "who cares"}

    result = check_named("ranks")(Case(Excused))
    assert result.status is Status.FAILS
    assert "hold different weights" in result.text
