"""Adversarial terms: their formulas, and the step however it is split."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, UserError
from plugins.adversarial import Adversarial, divergence, fast_gradient_sign, unit_rows

KINDS = [("fgsm", 0.1), ("vat", 1.0)]


def test_fast_gradient_sign_moves_every_entry_by_eps():
    assert fast_gradient_sign(torch.tensor([-2.0, 0.0, 1e-9]), 0.25).tolist() == [-0.25, 0.0, 0.25]


def test_unit_rows_have_length_one_a_sample():
    rows = unit_rows(torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]]))
    assert rows.tolist() == [[[pytest.approx(0.6), pytest.approx(0.8)]], [[0.0, 0.0]]]


def test_divergence_by_hand():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    expected = 0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(0.5 / 0.75))
    assert divergence(p.log(), q.log()).item() == pytest.approx(expected.item(), abs=1e-6)


def test_fgsm_equals_a_loop_by_hand(core_of, train, data, mlp):
    core = core_of(Adversarial(eps=0.1, kind="fgsm", alpha=0.5))
    train(core)
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for window in data.train_loader(seed=0):
        x, y = window.batches[0]
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(x), y), x)
        moved = x.detach() + 0.1 * gradient.sign()
        optimizer.zero_grad()
        (cross_entropy(model(x.detach()), y) + 0.5 * cross_entropy(model(moved), y)).backward()
        optimizer.step()
    for one, other in zip(core.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_vat_finds_the_direction_of_the_steepest_rise():
    """For a linear network the divergence is, to second order, a quadratic form whose top eigenvector is known."""
    torch.manual_seed(0)
    net = nn.Linear(5, 3, bias=False).double()
    x = torch.randn(1, 5, dtype=torch.float64)
    p = net(x).softmax(1)[0]
    fisher = net.weight.T @ (torch.diag(p) - torch.outer(p, p)) @ net.weight
    top = torch.linalg.eigh(fisher).eigenvectors[:, -1]
    direction = unit_rows(torch.randn(1, 5, dtype=torch.float64))
    for _ in range(30):
        direction.requires_grad_()
        logits, reference = net(x + 1e-3 * direction), net(x).detach()
        log_p, log_q = reference.log_softmax(1), logits.log_softmax(1)
        (gradient,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), direction)
        direction = unit_rows(gradient)
    assert abs(direction[0] @ top).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("kind", "eps"), KINDS)
@pytest.mark.parametrize("split", [{"accumulate": 4, "batch_size": 4}, {"devices": 2, "batch_size": 8}])
def test_step_is_the_same_however_its_batch_is_split(core_of, train, weights, digits, kind, eps, split):
    x, y = digits

    def trained(batch_size: int, accumulate: int = 1, devices: int = 1):
        core = core_of(
            Adversarial(eps=eps, kind=kind, xi=0.1), data=Data((x, y), batch_size=batch_size), accumulate=accumulate
        )
        train(core, **({"strategy": "ddp_fork", "devices": devices} if devices > 1 else {}))
        return weights(core)

    # VAT's direction is a ratio of small numbers, which magnifies rounding
    torch.testing.assert_close(trained(**split), trained(16), atol=1e-6 if kind == "fgsm" else 2e-5, rtol=0)


@pytest.mark.parametrize(("kind", "eps"), KINDS)
def test_mixed_precision_stays_close(core_of, train, weights, kind, eps):
    plain, scaled = (core_of(Adversarial(eps=eps, kind=kind)) for _ in range(2))
    train(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    train(scaled, plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)])
    torch.testing.assert_close(weights(scaled), weights(plain), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("kind", "eps"), KINDS)
def test_batch_norm_is_left_alone_and_zero_is_absent(core_of, train, kind, eps):
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 10))

    absent, zero, present = (
        core_of(*plugins, model=net())
        for plugins in ([], [Adversarial(eps=0.0, kind=kind)], [Adversarial(eps=eps, kind=kind)])
    )
    train(absent)
    train(zero)
    train(present, max_steps=1)
    assert all(torch.equal(a, b) for a, b in zip(absent.state_dict().values(), zero.state_dict().values(), strict=True))
    first = core_of(model=net())
    train(first, max_steps=1)
    assert torch.equal(present.model[1].running_mean, first.model[1].running_mean)
    assert present.model[1].num_batches_tracked == 1


def test_whole_numbers_as_inputs_are_refused(core_of, train, digits):
    x, y = digits
    model = nn.Sequential(nn.Embedding(17, 2), nn.Flatten(), nn.Linear(128, 10))
    core = core_of(Adversarial(eps=0.1, kind="fgsm"), model=model, data=Data(((x * 16).long(), y)))
    with pytest.raises(UserError, match=r"torch\.int64, and only floating-point inputs"):
        train(core)
