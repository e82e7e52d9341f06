"""How a check ends."""

from __future__ import annotations

import pytest

from framework import Plugin, Step
from framework.testing import Case, Status, cases_of, check_named
from plugins.mixup import Mixup
from tests.wrong_plugins import ForgetsItsCount


def test_refusal_is_neither_right_nor_wrong(harmless: type[Plugin]) -> None:
    result = check_named("micro")(Case(lambda: harmless(refuse=True)))
    assert (result.status, result.text) == (Status.REFUSED, "Harmless(refuse=True): refused; leave it out")
    result.require()


def test_declared_limit_is_told_with_what_was_measured() -> None:
    result = check_named("micro")(cases_of(Mixup)[0])
    assert result.status is Status.LIMITED
    assert result.text.startswith("partners come from the same micro-batch (4 micro-batches are not one batch: largest")


def test_declared_limit_that_is_none_fails(harmless: type[Plugin]) -> None:
    result = check_named("micro")(Case(lambda: harmless(promise="micro")))
    assert result.status is Status.FAILS
    assert result.text == "holds, though the plugin declares that it cannot: so it is said"


def test_error_of_a_plugin_is_a_failure_with_its_message(harmless: type[Plugin]) -> None:
    class Raising(harmless):
        def transform_gradients(self, step: Step) -> None:
            raise ZeroDivisionError("by a plugin")

    for name in ("micro", "ranks"):
        result = check_named(name)(Case(Raising))
        assert result.status is Status.FAILS
        assert "ZeroDivisionError: by a plugin" in result.text


def test_failure_raises_where_it_is_required() -> None:
    result = check_named("resume")(cases_of(ForgetsItsCount)[0])
    with pytest.raises(AssertionError, match=r"ForgetsItsCount\(\): resume fails: a run resumed from within an epoch"):
        result.require()
