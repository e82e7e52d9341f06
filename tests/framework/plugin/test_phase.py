"""Further phases of training."""

from __future__ import annotations

import dataclasses

import pytest

from framework.plugin import Phase


def test_a_phase_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Phase\('more'\): give max_steps or max_epochs"):
        Phase("more", "current")


def test_a_phase_has_its_own_end_in_place_of_the_runs() -> None:
    run = {"max_epochs": 9, "max_steps": 50, "min_epochs": 3, "min_steps": 40, "precision": "64-true", "max_time": "x"}
    kept = {"precision": "64-true", "max_time": "x"}
    assert Phase("a", "initial", max_steps=7).options(run) == {**kept, "max_epochs": -1, "max_steps": 7}
    assert Phase("a", "initial", max_epochs=2).options(run) == {**kept, "max_epochs": 2, "max_steps": -1}
    assert Phase("a", "initial", max_epochs=2, max_steps=7).options({}) == {"max_epochs": 2, "max_steps": 7}
    assert run["max_epochs"] == 9


def test_a_phase_stays_as_it_was_requested() -> None:
    phase = Phase("a", "initial", max_steps=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        phase.max_steps = 8
