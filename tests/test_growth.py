"""A long run holds what it held before."""

import pytest

from tests.growth import watch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::framework.LintWarning")]


def test_nothing_grows_over_a_long_run() -> None:
    samples = watch(steps=3000, every=500)
    first, last = samples[2], samples[-1]
    assert last.memory - first.memory < 8  # a leak of 4 KiB a step would be 6 MiB here, of a graph a step far more
    assert last.files == first.files
    assert last.disk < 1.02 * first.disk
    assert last.checkpoints == first.checkpoints == 3
