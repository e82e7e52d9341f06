"""What plugins are tried on."""

from __future__ import annotations

import pytest
import torch

from framework.testing import TASKS
from framework.testing.compare import same_bits


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_tasks_are_the_same_at_every_call(task) -> None:
    for noisy in (False, True):
        one, other = (task.model(torch.float64, noisy).state_dict() for _ in range(2))
        assert same_bits(dict(one), dict(other))
    windows = list(task.data(torch.float32, 4).train_loader(seed=0, accumulate=4))
    assert [[len(y) for _, y in window.batches] for window in windows] == [[4] * 4, [4] * 4, [4, 4, 4, 2]]
