"""Muon and AdamW as one optimizer; as the plugin makes it, tests/plugins/test_optimizer.py has it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from framework.ops.muon import Muon


def test_muons_update_is_orthogonal() -> None:
    weight = nn.Parameter(torch.zeros(4, 8))
    optimizer = Muon([{"params": [weight], "use_muon": True}], lr=1.0, adjust_lr_fn="original")
    torch.manual_seed(0)
    weight.grad = torch.randn(4, 8) * 100
    optimizer.step()
    singular = torch.linalg.svdvals(weight.detach())
    assert (singular > 0.5).all()
    assert (singular < 1.3).all()


def test_muon_tells_groups_that_do_not_say_who_moves_them() -> None:
    with pytest.raises(ValueError, match="use_muon"):
        Muon([{"params": [nn.Parameter(torch.eye(2))]}])
    with pytest.raises(ValueError, match="2D"):
        Muon([{"params": [nn.Parameter(torch.ones(2))], "use_muon": True}])


@pytest.mark.parametrize("groups", [True, False])
def test_muon_works_with_one_kind_of_group_alone(groups: bool) -> None:
    weight = nn.Parameter(torch.eye(2))
    optimizer = Muon([{"params": [weight], "use_muon": groups}], lr=0.1)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert not torch.equal(weight, torch.eye(2))
