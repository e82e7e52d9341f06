"""The list of all checks: somebody is caught by each, and bundled plugins hold what they claim."""

from __future__ import annotations

import pytest

from framework import Plugin
from framework.plugin.registry import registered
from framework.testing import CHECKS, Case, Check, Status, cases_of, check_named, check_plugin
from tests.wrong_plugins import CAUGHT

BUNDLED = {
    f"{entry.name}{number}": case for entry in registered() for number, case in enumerate(cases_of(entry.load()), 1)
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CAUGHT, ids=lambda kind: kind.__name__)
def test_wrong_plugin_fails_few_other_checks(kind: type[Plugin]) -> None:
    (case,) = cases_of(kind)
    failed = [check.name for check in CHECKS if check(case).status is Status.FAILS]
    assert CAUGHT[kind] in failed
    assert len(failed) <= 6  # noise left in shows wherever a step is taken twice


def test_every_check_catches_someone() -> None:
    assert set(CAUGHT.values()) == {check.name for check in CHECKS}


# once wrong: dropout of averaged statistics drew from the global generator and knew no float64; VAT's divergence was
# rounded to float32; squares of Cutout moved with the default type; fused momentum was spoilt by a skipped first step
@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("weight_average1", "draws"),
        ("weight_average1", "fp64"),
        ("adversarial2", "micro"),
        ("cutout1", "fp64"),
        ("optimizer2", "fp16"),
        ("early_stopping1", "resume"),
    ],
)
def test_what_a_check_found_once_holds(case: str, name: str) -> None:
    result = check_named(name)(BUNDLED[case])
    assert result.status is Status.HOLDS, result.text


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=str)
@pytest.mark.parametrize("case", BUNDLED.values(), ids=BUNDLED)
def test_every_bundled_plugin_holds(case: Case, check: Check) -> None:
    check(case).require()


def test_check_plugin_takes_a_function_that_makes_the_plugin(harmless: type[Plugin]) -> None:
    quick = [check_named(name) for name in ("zero", "micro", "slope", "state")]
    results = check_plugin(lambda: harmless(0.25), absent=lambda: harmless(1.0), checks=quick)
    assert [result.check for result in results] == ["zero", "micro", "slope", "state"]
    assert [result.status for result in results] == [Status.HOLDS] * 2 + [Status.INAPPLICABLE] * 2
    assert results[0].case == "Harmless(factor=0.25)"
