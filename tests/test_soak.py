"""The soak script on the real run, for a short while."""

import pytest

from tests import soak

pytestmark = pytest.mark.slow


def test_killed_runs_go_on_to_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = soak.soak(seconds=1, seed=1)
    told = capsys.readouterr().out
    assert wrong == 0, told
    assert int(told.rpartition(" kills, each resumed")[0].rpartition("\n")[2]) >= 8


def test_a_difference_is_found() -> None:
    assert soak.differences({"a": [1.0, {"b": 2}]}, {"a": [1.0, {"b": 3}]}) == ["/a/1/b: 2 and 3"]
