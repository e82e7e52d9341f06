"""Weights as matrices, and functions of singular values against autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from framework.ops.matrices import as_matrices, as_weight, nuclear, orthogonality, spectral
from framework.ops.units import units_of

LAYERS = [
    nn.Linear(5, 3),
    nn.Conv2d(4, 6, 3, groups=2),
    nn.ConvTranspose2d(4, 6, 3, groups=2),
    nn.ConvTranspose1d(4, 6, 2),
    nn.Embedding(7, 3),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_there_and_back(layer: Any) -> None:
    units, weight = units_of(layer), layer.weight.detach()
    matrices = as_matrices(weight, units)
    assert torch.equal(as_weight(matrices, weight, units), weight)
    assert matrices.numel() == weight.numel()


def test_a_transposed_convolution_is_the_transposed_matrix() -> None:
    layer = nn.ConvTranspose1d(2, 3, 1, bias=False)
    x = torch.randn(4, 2, 1)
    (matrix,) = as_matrices(layer.weight, units_of(layer))
    torch.testing.assert_close(layer(x)[..., 0], x[..., 0] @ matrix.T)


@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 5, 3)])
@pytest.mark.parametrize(
    ("function", "plain"),
    [
        (orthogonality, lambda s: (s.square() - 1).square().sum() / 2),
        (spectral, lambda s: s.amax(-1).square().sum() / 2),
        (nuclear, lambda s: s.sum()),
    ],
)
def test_values_and_gradients_are_those_of_singular_values(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], plain: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    w = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = plain(torch.linalg.svdvals(w))
    value, gradient = function(w.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, w)[0])


def test_a_matrix_of_low_rank_has_a_gradient_where_its_rank_is() -> None:
    w = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))[None]
    value, gradient = nuclear(w)
    assert value.item() == pytest.approx(5**0.5 * 5)
    torch.testing.assert_close(gradient, w / (5**0.5 * 5))
