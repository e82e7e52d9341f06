from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy

from framework import Data, MixedTarget, Plugin, Recipe, UserError, fit
from framework.data.mixed import loss_of
from framework.ops.keyed import Stream
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from plugins.mixup import Mixup, mixup

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.linspace(-1, 1, 8) > 0).long()


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def train(plugins=(), batch_size=16, loss=functional.cross_entropy, y=Y, metrics=None, **trainer):
    data = Data((X, y), (X, y), batch_size=batch_size)
    recipe = Recipe(make_model(), data, loss, metrics=metrics or {}, plugins=list(plugins))
    return fit(
        recipe, seed=3, trainer={"max_epochs": 2, "enable_progress_bar": False, "logger": False, **trainer}, logs=None
    )


def weights_of(run) -> torch.Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def step_of(count: int, index: int = 0, micro: int = 0, rank: int = 0) -> Step:
    step = Step(3, WeightEdits())
    step.index, step.count, step.micro, step.rank = index, count, micro, rank
    return step


def test_mixup_is_the_convex_combination():
    permutation = torch.tensor([2, 0, 1])
    x = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for weight in (0.0, 0.1, 0.5, 0.9, 1.0):
        torch.testing.assert_close(mixup(x, permutation, weight), weight * x + (1 - weight) * x[permutation])


def test_a_fit_equals_a_loop_by_hand():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    loader, stream, index = Data((X, Y), batch_size=16).train_loader(seed=3), Stream(3, "mixup"), 0
    for epoch in range(2):
        loader.set_epoch(epoch)
        for window in loader:
            x, y = window.batches[0]
            rng = stream.numpy(index)
            rng.random()
            weight = rng.beta(0.4, 0.4)
            weight = max(weight, 1 - weight)
            partners = torch.randperm(16, generator=stream.torch(index, 0, 0))
            soft = weight * functional.one_hot(y, 2) + (1 - weight) * functional.one_hot(y[partners], 2)
            optimizer.zero_grad()
            functional.cross_entropy(model(weight * x + (1 - weight) * x[partners]), soft.float()).backward()
            optimizer.step()
            index += 1
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.testing.assert_close(weights_of(train([Mixup(0.4)])), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, weights_of(train()), atol=1e-4)


def test_weights_follow_the_larger_part_of_the_beta_distribution():
    batch = (torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]))
    plugin = Mixup(0.5)
    weights = [plugin.transform_batch(batch, step_of(2, index))[1].pairs[0][1] for index in range(500)]
    assert min(weights) >= 0.5
    folded = lambda w: 2 * stats.beta(0.5, 0.5).cdf(w) - 1  # noqa: E731
    assert stats.kstest(weights, folded).pvalue > 0.01


def test_the_weight_is_one_for_the_step_and_partners_are_those_of_the_micro_batch():
    x = torch.arange(32.0).unsqueeze(1)
    first, again, micro, rank = (
        Mixup().transform_batch((x, x), step_of(32, micro=m, rank=r)) for m, r in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first[0], again[0])
    for other in (micro, rank):
        assert other[1].pairs[0][1] == first[1].pairs[0][1]
        assert not torch.equal(other[0], first[0])


def test_any_loss_works_on_the_weighted_pairs():
    def huber(prediction, target):
        return functional.huber_loss(prediction, target)

    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    y = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
    mixed, target = Mixup(1.0).transform_batch((x, y), step_of(8))
    (own, weight), (other, rest) = target.pairs
    assert torch.equal(own, y)
    assert weight + rest == pytest.approx(1.0)
    torch.testing.assert_close(mixed, weight * x + rest * x[_partners(y, other)])
    torch.testing.assert_close(loss_of(huber, mixed, target), weight * huber(mixed, own) + rest * huber(mixed, other))


def _partners(y, other) -> torch.Tensor:
    return (other[:, None] == y[None]).all(2).int().argmax(1)


def test_metrics_compare_with_the_clean_target():
    seen = []

    class Watch(Plugin):
        def transform_batch(self, batch, step):
            seen.append(batch[1])
            return batch

    run = train([Mixup(1.0), Watch()], metrics={"accuracy": MulticlassAccuracy(2, average="micro")}, max_epochs=20)
    assert all(isinstance(target, MixedTarget) and torch.equal(target.clean, target.pairs[0][0]) for target in seen)
    assert 0.0 <= run.last["train/accuracy"] <= 1.0
    assert run.last["val/accuracy"] > 0.8


def test_mixing_twice_multiplies_the_weights_out():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    basis = torch.eye(8)  # the target tells which samples a mixture is made of
    batch = Mixup(1.0, name="first").transform_batch((x, basis), step_of(8))
    mixed, target = Mixup(1.0, name="second").transform_batch(batch, step_of(8))
    shares = sum(weight * one for one, weight in target.pairs)
    assert len(target.pairs) == 4
    torch.testing.assert_close(shares.sum(1), torch.ones(8))
    torch.testing.assert_close(mixed, shares @ x)
    assert torch.equal(target.clean, basis)


@pytest.mark.parametrize("plugin", [Mixup(0.0), Mixup(1.0, 0.0)])
def test_strength_zero_is_absent_bit_for_bit(plugin):
    assert torch.equal(weights_of(train([copy.deepcopy(plugin)])), weights_of(train()))


def test_the_probability_is_that_of_steps():
    batch = (torch.ones(4, 2), torch.ones(4))
    mixed = [Mixup(1.0, 0.3).transform_batch(batch, step_of(4, index)) is not batch for index in range(400)]
    assert stats.binomtest(int(np.sum(mixed)), 400, 0.3).pvalue > 0.01


def test_evaluation_sees_clean_samples():
    run = train([Mixup(1.0)])
    clean = functional.cross_entropy(run.core.model(X), Y).item()
    assert run.last["val/loss"] == pytest.approx(clean, abs=1e-6)


@pytest.mark.parametrize("x", [torch.ones(4, 2, dtype=torch.long), [1, 2]])
def test_inputs_that_cannot_be_mixed_are_refused(x):
    with pytest.raises(UserError, match=r"Mixup\(.*needs inputs of floating-point numbers"):
        Mixup(0.3).transform_batch((x, torch.ones(4)), step_of(4))


@pytest.mark.parametrize("settings", [{"alpha": -0.1}, {"alpha": float("nan")}, {"probability": 1.1}])
def test_settings_out_of_bounds_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Mixup(**settings)


def test_several_targets_are_mixed_each():
    x, y, z = X[:8], torch.arange(8.0)[:, None], torch.eye(8)
    mixed, target = Mixup(1.0).transform_batch((x, (y, {"z": z})), step_of(8))
    parts = [sum(weight * one for one, weight in [(read(t), w) for t, w in target.pairs]) for read in READ]
    inverse = torch.linalg.lstsq(x.T, mixed.T).solution.T  # which samples a mixture is made of
    torch.testing.assert_close(inverse, parts[1], rtol=0, atol=1e-3)
    torch.testing.assert_close(parts[0], parts[1] @ y)
    assert target.clean == (y, {"z": z})


READ = (lambda t: t[0], lambda t: t[1]["z"])


def test_targets_that_cannot_be_mixed_are_refused():
    with pytest.raises(UserError, match=r"Mixup\(alpha=1.0\): mixes targets whose tensors have one row per sample"):
        Mixup(1.0).transform_batch((X[:8], (Y[:8], ["a"] * 8)), step_of(8))


def test_several_inputs_are_mixed_alike():
    a = torch.eye(8)
    (x, y), target = Mixup(1.0).transform_batch(((a, 2 * a[:, None]), a), step_of(8))
    torch.testing.assert_close(y[:, 0], 2 * x)
    torch.testing.assert_close(sum(weight * one for one, weight in target.pairs), x)
    with pytest.raises(UserError, match=r"received torch\.int64.*override transform_batch"):
        Mixup(1.0).transform_batch(((a, torch.arange(8)), a), step_of(8))
