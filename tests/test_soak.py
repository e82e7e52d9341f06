"""The soak script on the real run, for a short while."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import soak

pytestmark = pytest.mark.slow


def test_killed_runs_resume_to_the_same_bits() -> None:
    # a process of its own: where a fit was made before, torch's builds for CUDA refuse ranks to forked processes
    command = [sys.executable, "-m", "tests.soak", "--seconds", "1", "--seed", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.rpartition(" kills, each resumed")[0].rpartition("\n")[2]) >= 8


def test_a_difference_is_found() -> None:
    assert soak.differences({"a": [1.0, {"b": 2}]}, {"a": [1.0, {"b": 3}]}) == ["/a/1/b: 2 and 3"]
