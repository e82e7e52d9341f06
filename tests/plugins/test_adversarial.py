"""Adversarial terms: their formulas, and the step however it is split."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

from framework import Data, Recipe, UserError, fit
from framework.data.outputs import outputs_of
from plugins.adversarial import (
    Adversarial,
    bernoulli_divergence,
    divergence,
    fast_gradient_sign,
    normal_divergence,
    unit_rows,
)

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


# ---- what VAT takes the outputs for ----------------------------------------------------------------------------------


def test_divergences_of_bernoulli_and_normal_outputs_by_hand():
    p, q = torch.tensor([[0.5, 0.9]]).logit(), torch.tensor([[0.25, 0.9]]).logit()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert bernoulli_divergence(p, q).item() == pytest.approx(expected, abs=1e-6)
    # a yes or no is a choice of two classes with logits a and 0
    a, b = torch.randn(7, 1), torch.randn(7, 1)
    two = [torch.cat([logits, torch.zeros(7, 1)], 1) for logits in (a, b)]
    torch.testing.assert_close(bernoulli_divergence(a, b), divergence(*two))
    far = torch.tensor([[-200.0], [200.0]], requires_grad=True)
    bernoulli_divergence(far.detach() * 1.5, far).backward()
    assert far.grad.isfinite().all()
    assert normal_divergence(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2)).item() == 5 / 4
    assert normal_divergence(torch.tensor([2.0, 0.0]), torch.zeros(2)).item() == 1.0


def run_vat(loss, target, width, settings):
    """Return the term that a run of one step logs."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, width), *([nn.Flatten(0)] if target.ndim == 1 and target.is_floating_point() else [])]
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    plugin = Adversarial(2.0, "vat", **settings)
    recipe = Recipe(nn.Sequential(*layers), Data((x, target), batch_size=8), loss, plugins=[plugin])
    run = fit(recipe, logs=None, trainer={"max_epochs": 1, "enable_progress_bar": False})
    (term,) = [value for tag, value in run.last.items() if "adversarial" in tag]
    return term


def bce(p, t):
    return F.binary_cross_entropy_with_logits(p, t)


YES = (torch.arange(8) % 2).float()


@pytest.mark.parametrize(
    ("loss", "target", "width", "settings"),
    [
        (F.mse_loss, YES[:, None], 1, {}),
        (F.mse_loss, YES, 1, {}),
        (nn.MSELoss(), YES[:, None].expand(8, 2), 2, {}),
        (nn.BCEWithLogitsLoss(), YES[:, None], 1, {}),
        (nn.BCEWithLogitsLoss(), YES, 1, {}),
        (F.binary_cross_entropy_with_logits, YES[:, None].expand(8, 3), 3, {}),
        (bce, YES[:, None], 1, {"outputs": "bernoulli"}),
        (bce, YES[:, None].expand(8, 3), 3, {"outputs": "bernoulli"}),
    ],
)
def test_one_output_and_several_labels_have_a_term(loss, target, width, settings):
    torch.manual_seed(0)
    layer = nn.Linear(3, width)
    term = run_vat(loss, target, width, settings)
    if outputs_of(loss) == "normal" and width == 1:
        # a linear map rises fastest along its weights: half of (eps |w|)^2
        assert term == pytest.approx(0.5 * (2.0 * layer.weight.norm().item()) ** 2, rel=1e-3)
    assert term > 1e-3


def test_soft_labels_of_an_unknown_loss_are_classes():
    rows = torch.tensor([[0.25, 0.75]]).expand(8, 2)
    assert run_vat(lambda p, t: F.cross_entropy(p, t), rows, 2, {}) == run_vat(F.cross_entropy, rows, 2, {})


@pytest.mark.parametrize(
    ("loss", "target", "width", "word"),
    [
        (bce, YES[:, None], 1, r"one output a sample, shape \(8, 1\): give outputs='bernoulli'"),
        (bce, YES[:, None].expand(8, 3), 3, "targets shaped like the outputs.*do not sum to 1"),
        (F.cross_entropy, torch.zeros(8, dtype=torch.long), 1, "two classes or more.*softmax of one is constant"),
    ],
)
def test_outputs_that_no_divergence_fits_are_refused(loss, target, width, word):
    with pytest.raises(UserError, match=word):
        run_vat(loss, target, width, {})


def test_outputs_are_vats():
    with pytest.raises(UserError, match=r"kind='fgsm', outputs='normal'.*leave it out"):
        Adversarial(0.1, "fgsm", outputs="normal")
