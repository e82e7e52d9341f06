"""Encodings by hand, and against NumPy."""

from __future__ import annotations

import math

import numpy as np
import torch

from framework.ops.encodings import edges_of, periodic, piecewise_linear

NAN = float("nan")


def test_edges_are_quantiles_without_missing_values() -> None:
    x = torch.tensor([[3.0, 1.0, NAN], [NAN, 1.0, NAN], [1.0, 1.0, NAN], [2.0, 1.0, NAN]])
    assert edges_of(x, 2).tolist() == [[1, 2, 3], [1, 1, 1], [0, 0, 0]]
    many = torch.randn(1001, 1, generator=torch.Generator().manual_seed(0))
    expected = np.quantile(many.numpy(), np.arange(11) / 10)
    np.testing.assert_allclose(edges_of(many, 10)[0].numpy(), expected, rtol=1e-6)


def test_piecewise_linear_is_numpys_interpolation() -> None:
    edges = torch.tensor([[-1.0, 0.0, 2.0, 5.0]])
    x = torch.linspace(-3, 7, 41)[:, None]
    found = piecewise_linear(x, edges)
    assert found.shape == (41, 1, 3)
    expected = np.interp(x[:, 0].numpy(), edges[0].numpy(), np.arange(4.0))  # the sum over bins goes 0, 1, 2, 3
    np.testing.assert_allclose(found.sum((1, 2)).numpy(), expected, atol=1e-6)
    assert bool((found.diff(dim=2) <= 0).all())  # a bin begins where the one before is full


def test_bins_without_width_and_missing_values_give_nothing() -> None:
    edges = torch.tensor([[0.0, 0.0, 1.0], [2.0, 2.0, 2.0]])
    x = torch.tensor([[0.5, 2.0], [NAN, NAN]])
    assert piecewise_linear(x, edges).tolist() == [[[0, 0.5], [0, 0]], [[0, 0], [0, 0]]]
    assert periodic(torch.tensor([[NAN]]), torch.ones(1, 2)).tolist() == [[[0, 0, 0, 0]]]


def test_periodic_by_hand() -> None:
    found = periodic(torch.tensor([[0.25, 1.0]]), torch.tensor([[1.0, 2.0], [0.5, 1.0]]))
    sines = [math.sin(math.pi / 2), math.sin(math.pi), math.cos(math.pi / 2), math.cos(math.pi)]
    torch.testing.assert_close(found[0, 0], torch.tensor(sines))
    assert found.shape == (1, 2, 4)
