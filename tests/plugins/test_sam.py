"""Sharpness-aware minimization: its formula, a loop by hand, and the step however it is split."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, UserError
from plugins.sam import SAM, ascent_


def test_ascent_has_length_rho_along_the_gradient():
    steps = [torch.tensor([3.0]), torch.tensor([4.0])]
    ascent_([torch.zeros(1), torch.zeros(1)], steps, 0.5, False, 0.0)
    assert torch.cat(steps).tolist() == pytest.approx([0.3, 0.4])


def test_adaptive_ascent_scales_with_the_weights_squared():
    # T = |w| = (2, 1), g = (1, 2): |Tg| = sqrt(8), step = rho T^2 g / |Tg|
    steps = [torch.tensor([1.0, 2.0])]
    ascent_([torch.tensor([-2.0, 1.0])], steps, 1.0, True, 0.0)
    assert steps[0].tolist() == pytest.approx([4 / 8**0.5, 2 / 8**0.5])


def test_zero_gradient_gives_no_step():
    steps = [torch.zeros(2)]
    ascent_([torch.ones(2)], steps, 0.1, False, 0.0)
    assert steps[0].tolist() == [0.0, 0.0]


def by_hand(data: Data, model: nn.Module, rho: float) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for window in data.train_loader(seed=0):
        x, y = window.batches[0]
        weights = list(model.parameters())
        gradients = torch.autograd.grad(cross_entropy(model(x), y), weights)
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        clean = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w, g in zip(weights, gradients, strict=True):
                w.add_(rho * g / norm)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for w, kept in zip(weights, clean, strict=True):
                w.copy_(kept)
        optimizer.step()
    return model


def test_equals_a_loop_by_hand(core_of, train, data, mlp):
    core = core_of(SAM(rho=0.1))
    train(core)
    reference = by_hand(data, mlp(), rho=0.1)
    for one, other in zip(core.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("split", [{"accumulate": 4, "batch_size": 4}, {"devices": 2, "batch_size": 8}])
@pytest.mark.parametrize("adaptive", [False, True])
def test_step_is_the_same_however_its_batch_is_split(core_of, train, weights, digits, split, adaptive):
    x, y = digits

    def trained(batch_size: int, accumulate: int = 1, devices: int = 1):
        core = core_of(SAM(rho=0.1, adaptive=adaptive), data=Data((x, y), batch_size=batch_size), accumulate=accumulate)
        train(core, **({"strategy": "ddp_fork", "devices": devices} if devices > 1 else {}))
        return weights(core)

    torch.testing.assert_close(trained(**split), trained(16), atol=1e-6, rtol=0)


def test_works_with_a_grad_scaler_and_skips_with_it(core_of, train, weights):
    plain, scaled = core_of(SAM(rho=0.1)), core_of(SAM(rho=0.1))
    train(plain)
    # 2**20 overflows float16 at first, so that steps are skipped until the scale has come down
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    train(scaled, max_epochs=3, plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)])
    assert scaler.get_scale() < 2.0**20
    assert torch.isfinite(weights(scaled)).all()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    again = core_of(SAM(rho=0.1))
    train(again, plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)])
    torch.testing.assert_close(weights(again), weights(plain), atol=1e-3, rtol=0)


def test_running_statistics_and_dropout_see_one_evaluation(core_of, train):
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 10))

    absent, zero, present = core_of(model=net()), core_of(SAM(rho=0.0), model=net()), core_of(SAM(), model=net())
    for core in (absent, zero, present):
        train(core)
    assert present.model[1].num_batches_tracked == absent.model[1].num_batches_tracked
    assert all(torch.equal(a, b) for a, b in zip(absent.state_dict().values(), zero.state_dict().values(), strict=True))
    assert not torch.equal(present.model[0].weight, absent.model[0].weight)


def test_first_statistics_are_those_without_it(core_of, train):
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))

    absent, present = core_of(model=net()), core_of(SAM(rho=1.0), model=net())
    train(absent, max_steps=1)
    train(present, max_steps=1)
    assert torch.equal(present.model[1].running_mean, absent.model[1].running_mean)


def test_two_second_gradients_are_an_error(core_of):
    with pytest.raises(UserError, match="second_gradient: 'sam' and 'other' both answer"):
        core_of(SAM(), SAM(name="other"))
