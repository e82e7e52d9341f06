from __future__ import annotations

import math

import pytest
import torch

from framework.ops.proximal import group_norms, shrink, shrink_groups


def test_norms_of_groups_by_hand() -> None:
    w = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    (rows,), (columns,) = group_norms([w], "rows", weigh=True), group_norms([w], "columns", weigh=False)
    torch.testing.assert_close(rows, torch.tensor([[5.0], [2.0]]) * math.sqrt(2))
    torch.testing.assert_close(columns, torch.tensor([[3.0, math.sqrt(20)]]) / math.sqrt(2))


def test_soft_thresholding_gives_exact_zeros() -> None:
    w = torch.tensor([3.0, 0.3, 0.0, -0.3, -2.0])
    shrink([w], 0.3)
    assert w.tolist() == pytest.approx([2.7, 0.0, 0.0, 0.0, -1.7])
    assert (w[1:4] == 0).all()


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.7), (0.2, 0.5)])
def test_the_proximal_step_minimizes_its_objective(l1: float, l2: float) -> None:
    w = torch.linspace(-2, 2, 9, dtype=torch.float64)
    found = w.clone()
    shrink([found], l1, l2)
    grid = torch.linspace(-3, 3, 60001, dtype=torch.float64)[:, None]
    objective = (grid - w) ** 2 / 2 + l1 * grid.abs() + l2 * grid**2 / 2
    assert torch.allclose(found, grid[objective.argmin(0), 0], atol=2e-4)


def test_the_group_step_kills_whole_groups_and_shortens_the_others() -> None:
    w = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64)
    shrink_groups([w], 0.5, "rows")
    left = 1 - 0.5 * math.sqrt(2) / 5
    assert torch.allclose(w[0], torch.tensor([3.0, 4.0], dtype=torch.float64) * left)
    assert (w[1:] == 0).all()
