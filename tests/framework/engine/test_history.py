from __future__ import annotations

import math

import pytest

from framework.engine.history import Entry, best_of, warn_of_first

HISTORY = [Entry(epoch, 10 * epoch, {"val/a": value}) for epoch, value in enumerate((math.nan, 2.0, 1.0, 3.0, 3.0))]


def test_the_first_best_counts() -> None:
    low, high = best_of(HISTORY, "val/a", "min"), best_of(HISTORY, "val/a", "max")
    assert low is not None and low.epoch == 2
    assert high is not None and high.epoch == 3
    assert best_of(HISTORY[:1], "val/a", "min") is None and best_of(HISTORY, "val/b", "min") is None


def test_only_the_first_validation_is_told_of() -> None:
    with pytest.warns(UserWarning, match="val/a is nan at the first validation"):
        warn_of_first(HISTORY[:1], "val/a")
    warn_of_first(HISTORY, "val/a")
    warn_of_first(HISTORY[1:2], "val/a")
    warn_of_first([], "val/a")
