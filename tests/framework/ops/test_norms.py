from __future__ import annotations

import pytest
import torch

from framework.ops.norms import add_norm_gradient, group_norm, norm


def test_norms_of_complex_weights_are_of_absolute_values() -> None:
    w = [torch.tensor([[3 + 4j, 0j]]), torch.tensor([[1.0, -2.0]])]
    assert norm(w, 1).item() == pytest.approx(5 + 3)
    assert norm(w, 2).item() == pytest.approx((25 + 1 + 4) / 2)
    assert group_norm(w, "columns").item() == pytest.approx(5 + 1 + 2)


def test_the_slope_of_a_complex_norm() -> None:
    for p, slope in ((1, 0.6 + 0.8j), (2, 3 + 4j), (3, 15 + 20j)):
        g = [torch.zeros(2, dtype=torch.complex64)]
        add_norm_gradient(g, [torch.tensor([3 + 4j, 0j])], 1.0, p)
        assert g[0].tolist() == pytest.approx([slope, 0])


def test_sums_over_types_are_taken_in_the_widest() -> None:
    # 2^20 ones and 2^-10: bfloat16 and float32 cannot tell the sum from 2^20
    w = [torch.ones(1 << 10, dtype=torch.bfloat16), torch.full((1,), 2.0**-20, dtype=torch.float64)]
    assert norm(w, 1).item() == 1024 + 2.0**-20
