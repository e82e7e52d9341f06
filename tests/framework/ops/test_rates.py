from __future__ import annotations

import math

import pytest
import torch

from framework.ops.rates import kl


def test_kl_is_that_of_bernoulli_variables():
    h, rho = torch.rand(10, 6, dtype=torch.float64), 0.1
    target, rate = torch.distributions.Bernoulli(torch.tensor(rho)), torch.distributions.Bernoulli(h.mean(0))
    expected = torch.distributions.kl_divergence(target, rate).sum()
    torch.testing.assert_close(kl(h, rho), expected)


def test_kl_and_its_gradient_in_closed_form():
    h, rho = torch.rand(10, 6, dtype=torch.float64, requires_grad=True), 0.1
    (gradient,) = torch.autograd.grad(kl(h, rho), h)
    rate = h.detach().mean(0)
    torch.testing.assert_close(gradient, ((-rho / rate + (1 - rho) / (1 - rate)) / 10).expand(10, 6))
    assert torch.autograd.gradcheck(lambda h: kl(h, rho), h)


def test_kl_is_zero_at_the_target_and_finite_at_both_ends():
    assert kl(torch.full((4, 3), 0.3), 0.3).abs() < 1e-6
    for end in (0.0, 1.0):
        h = torch.full((4, 3), end, requires_grad=True)
        value = kl(h, 0.3)
        value.backward()
        assert math.isfinite(value.item())
        assert value > 1
        assert h.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("z", [-1000.0, -88.0, -14.0, -1.0, 0.0, 4.0, 14.0, 40.0, 1000.0])
def test_the_slope_along_logits_is_the_rate_less_the_target(z, dtype):
    logits = torch.full((4, 2), z, dtype=dtype, requires_grad=True)
    value = kl(logits.sigmoid(), 0.05, logits)
    value.backward()
    rate = 1 / (1 + math.exp(-z)) if z > -700 else 0.0
    assert logits.grad.sum(0).tolist() == pytest.approx([rate - 0.05] * 2, abs=3e-5)
    assert math.isfinite(value.item())


def test_logits_that_differ_share_the_slope_by_their_rates():
    # one row is on by e times as much as the other: of the slope -rho it gets e / (e + 1)
    logits = torch.tensor([[-50.0], [-49.0]], requires_grad=True)
    kl(logits.sigmoid(), 0.2, logits).backward()
    share = math.e / (math.e + 1)
    assert logits.grad.flatten().tolist() == pytest.approx([-0.2 * (1 - share), -0.2 * share], rel=1e-5)


def test_the_divergence_of_a_unit_that_is_off_follows_its_logit():
    # KL = rho log rho + (1 - rho) log(1 - rho) - rho log r, and log r = z
    logits = torch.full((3, 1), -500.0)
    expected = 0.1 * math.log(0.1) + 0.9 * math.log(0.9) + 0.1 * 500
    assert kl(logits.sigmoid(), 0.1, logits).item() == pytest.approx(expected, rel=1e-6)


def test_infinite_logits_give_finite_slopes():
    logits = torch.tensor([[-math.inf, math.inf, 0.0]], requires_grad=True)
    kl(logits.sigmoid(), 0.1, logits).backward()
    assert logits.grad.isfinite().all()
