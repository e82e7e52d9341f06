from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from framework import UserError
from framework.foreign.trace import keep_attributes


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.losses, self.by_name, self.recent = [1.0], {"a": 1}, deque([1], maxlen=3)
        self.count, self.mean = 0, MeanMetric()
        self.plain = torch.zeros(2)


def test_what_a_step_changed_is_put_back() -> None:
    module = Remembers()
    module.mean.update(2.0)
    losses, by_name = module.losses, module.by_name
    put_back = keep_attributes(module)
    module.losses.append(2.0)
    module.by_name["b"] = 2
    module.recent.append(5)
    module.count += 1
    module.last = torch.ones(1)
    module.inner.seen = True
    module.mean.update(8.0)
    module.plain = torch.ones(2)
    put_back()
    assert module.losses == [1.0] and module.losses is losses
    assert module.by_name == {"a": 1} and module.by_name is by_name
    assert list(module.recent) == [1] and module.count == 0
    assert not hasattr(module, "last") and not hasattr(module.inner, "seen")
    assert float(module.mean.compute()) == 2.0
    assert module.plain.tolist() == [0.0, 0.0]


def test_a_tensor_that_was_changed_in_place_is_named() -> None:
    module = Remembers()
    put_back = keep_attributes(module)
    module.plain += 1
    with pytest.raises(UserError, match=r"Remembers\.plain.*register it as a buffer"):
        put_back()
