from __future__ import annotations

import io
import random

import numpy as np
import torch

from framework.ops.generators import set_generators, state_of_generators


def _draw() -> tuple[float, float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random(), random.gauss()  # noqa: NPY002


def test_all_generators_go_on_from_a_state_that_a_checkpoint_holds() -> None:
    random.gauss()  # keeps a second number
    np.random.randn()  # noqa: NPY002
    file = io.BytesIO()
    torch.save(state_of_generators(), file)
    first = _draw()
    file.seek(0)
    set_generators(torch.load(file, weights_only=True))
    assert _draw() == first
