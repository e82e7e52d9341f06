"""Clipping by the joint norm: torch's, to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from framework.errors import UserError
from framework.ops.clip import clip_by_norm_, clip_by_value_, total_norm


def both(gradients: list[Tensor], limit: float) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Return norm and gradients by ours and by torch's function."""
    parameters = [nn.Parameter(torch.zeros_like(one)) for one in gradients]
    for parameter, one in zip(parameters, gradients, strict=True):
        parameter.grad = one.clone()
    theirs = nn.utils.clip_grad_norm_(parameters, limit)
    ours = [one.clone() for one in gradients]
    return clip_by_norm_(ours, limit), ours, theirs, [p.grad for p in parameters if p.grad is not None]


@pytest.mark.parametrize("limit", [1e-3, 1.0, 30.0, 1e9])
@pytest.mark.parametrize("dtypes", ["float32", "float64", "bfloat16", "float32 float64"])
def test_it_is_torchs_to_the_bit(limit: float, dtypes: str) -> None:
    torch.manual_seed(0)
    kinds = [getattr(torch, dtype) for dtype in dtypes.split()]
    shapes = [(128, 64), (128,), (), (10, 128), (0,), (3, 1, 2)]
    gradients = [torch.randn(shape).to(kinds[place % len(kinds)]) for place, shape in enumerate(shapes)]
    ours, clipped, theirs, wanted = both(gradients, limit)
    assert torch.equal(ours, theirs)
    assert all(torch.equal(one, other) for one, other in zip(clipped, wanted, strict=True))
    assert torch.equal(clipped[0], gradients[0]) == (limit == 1e9)


def test_by_hand() -> None:
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert clip_by_norm_(gradients, 2.5).item() == 5
    assert torch.cat(gradients).tolist() == pytest.approx([1.5, 2.0], abs=1e-6)


def test_no_gradients_have_norm_0() -> None:
    assert clip_by_norm_([], 1.0).item() == 0


def test_a_gradient_that_is_not_finite_spoils_all_as_torchs_does() -> None:
    for bad in (math.nan, math.inf):
        gradients = [torch.tensor([1.0, bad]), torch.tensor([4.0])]
        ours, clipped, theirs, wanted = both(gradients, 1.0)
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert not ours.isfinite()
        for one, other in zip(clipped, wanted, strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_gradients_that_have_a_graph_are_clipped_without_one() -> None:
    weight = torch.ones(3, requires_grad=True)
    (gradient,) = torch.autograd.grad((weight**3).sum(), weight, create_graph=True)
    assert not clip_by_norm_([gradient], 1.0).requires_grad
    assert gradient.norm().item() == pytest.approx(1.0)


def sparse() -> Tensor:
    """Return a gradient of 3 in row 1 and 4 in row 0, the first as the sum of 1 and 2 that torch keeps apart."""
    return torch.sparse_coo_tensor(
        torch.tensor([[1, 0, 1]]), torch.tensor([[1.0], [4.0], [2.0]]), (3, 1), check_invariants=True
    )


@pytest.mark.parametrize("others", [[], [torch.tensor([12.0])]])
def test_sparse_gradients_have_the_norm_of_their_sums(others: list[Tensor]) -> None:
    assert total_norm([sparse(), *others]).item() == pytest.approx(13 if others else 5)
    gradients = [sparse(), *[one.clone() for one in others]]
    assert clip_by_norm_(gradients, 1.0).item() == pytest.approx(13 if others else 5)
    assert gradients[0].is_sparse
    assert total_norm(gradients).item() == pytest.approx(1.0)
    clip_by_norm_(gradients, 100.0)
    assert total_norm(gradients).item() == pytest.approx(1.0)


def test_sparse_gradients_are_limited_by_the_values_of_their_sums() -> None:
    parameters = [nn.Parameter(torch.zeros(3, 1)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = sparse(), torch.tensor([-9.0, 1.0])
    clip_by_value_(parameters, 2.5)
    assert parameters[0].grad.is_sparse
    assert parameters[0].grad.to_dense().flatten().tolist() == [2.5, 2.5, 0.0]
    assert parameters[1].grad.tolist() == [-2.5, 1.0]
    assert parameters[2].grad is None


def test_complex_gradients_have_a_norm_and_no_order() -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.complex64))
    parameter.grad = torch.tensor([3 + 4j])
    assert total_norm([parameter.grad, torch.tensor([12.0])]).item() == pytest.approx(13)
    with pytest.raises(UserError, match=r"parameter 0 of shape \(1,\) is complex.*clip by norm"):
        clip_by_value_([parameter], 1.0)
    assert clip_by_norm_([parameter.grad], 1.0).item() == pytest.approx(5)
    assert parameter.grad.item() == pytest.approx(0.6 + 0.8j, abs=1e-6)
