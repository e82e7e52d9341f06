"""Averages of the weights: their formulas, and that only evaluation sees them."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from framework import Data, UserError, fit
from plugins.early_stopping import EarlyStopping
from plugins.weight_average import WeightAverage, average_, equal_share, exponential_share


def test_equal_shares_give_the_mean():
    terms = [torch.tensor([v]) for v in (1.0, 4.0, 10.0)]
    mean = terms[0].clone()
    for t, term in enumerate(terms[1:], 1):
        average_([mean], [term], equal_share(t))
    assert mean.item() == pytest.approx(5.0)


def test_decay_grows_to_its_value():
    assert [1 - exponential_share(t, 0.99) for t in (0, 1, 10_000)] == pytest.approx([0.1, 2 / 11, 0.99])


@pytest.mark.parametrize("every", [1, 3])
def test_without_warmup_it_is_the_average_of_torch(core_of, train, every):
    core, trail = core_of(WeightAverage(decay=0.8, every=every, warmup=False)), Trail()
    train(core, callbacks=[trail], max_epochs=2)
    terms, average = trail.weights[every - 1 :: every], get_ema_multi_avg_fn(0.8)
    expected = [terms[0].clone()]
    for count, term in enumerate(terms[1:], 1):
        average(expected, [term], count)
    torch.testing.assert_close(core.plugins[0].averages_[0], expected[0], atol=1e-6, rtol=0)


def test_a_mean_has_no_decay_to_warm_up():
    with pytest.raises(UserError, match=r"WeightAverage\(kind='swa', warmup=False\).*leave warmup out"):
        WeightAverage("swa", warmup=False)


class Trail(pl.Callback):
    """Keeps the weights after every step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.weights.append(pl_module.model[0].weight.detach().clone())


@pytest.mark.parametrize("every", [1, 3])
def test_swa_is_the_mean_of_the_weights_along_the_way(core_of, train, every):
    core, trail = core_of(WeightAverage("swa", every=every)), Trail()
    train(core, callbacks=[trail], max_epochs=2)
    chosen = trail.weights[every - 1 :: every]
    torch.testing.assert_close(core.plugins[0].averages_[0], torch.stack(chosen).mean(0), atol=1e-6, rtol=0)


def test_swa_starts_late(core_of, train):
    core = core_of(WeightAverage("swa", start=0.5))
    train(core, max_epochs=2)
    assert core.plugins[0].updates_ == 7  # 14 updates in all


def test_training_and_checkpoints_hold_raw_weights(core_of, train, weights, tmp_path):
    absent, present = core_of(), core_of(WeightAverage(decay=0.9))
    train(absent, max_epochs=2)
    saved = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val/loss", filename="x")
    trainer = train(present, max_epochs=2, callbacks=[saved], enable_checkpointing=True)
    assert torch.equal(weights(absent), weights(present))
    assert trainer.callback_metrics["val/loss"] != absent.trainer.callback_metrics["val/loss"]
    state = torch.load(saved.best_model_path, weights_only=True)
    assert torch.equal(state["state_dict"]["model.0.weight"], present.model[0].weight)
    kept = state["callbacks"]["plugins/0"]
    assert torch.equal(kept["weight_average"]["averages"]["0.weight"], present.plugins[0].averages_[0])


def test_validation_sees_the_average(core_of, train, data):
    core = core_of(WeightAverage(decay=0.9))
    trainer = train(core, max_epochs=2)
    with torch.no_grad():
        for weight, average in zip(core.model.parameters(), core.plugins[0].averages_, strict=True):
            weight.copy_(average)
        x, y = data.val
        expected = nn.functional.cross_entropy(core.model(x), y)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_raw_weights_come_back_when_validation_fails(core_of, train, weights):
    class Fails(pl.Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
            raise RuntimeError("no luck")

    core, raw = core_of(WeightAverage(decay=0.9)), core_of()
    with pytest.raises(RuntimeError, match="no luck"):
        train(core, callbacks=[Fails()])
    assert not torch.equal(weights(core), weights(raw))
    core.leave_evaluation()
    train(raw)
    assert torch.equal(weights(core), weights(raw))


def test_batch_norm_statistics_are_those_of_the_averaged_network(core_of, train, digits):
    x, y = digits
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))
    core = core_of(WeightAverage("swa", batches=100), model=net, data=Data((x, y), (x, y), batch_size=60))
    train(core, max_epochs=2)
    raw = net[1].running_mean.clone()
    with core.evaluation():
        average = net[1].running_mean.clone()
        hidden = net[0](x)
    torch.testing.assert_close(average, hidden.detach().mean(0), atol=1e-5, rtol=0)
    assert torch.equal(net[1].running_mean, raw)


def test_state_goes_through_a_file(core_of, train, tmp_path):
    core = core_of(WeightAverage())
    train(core)
    torch.save(core.plugins[0].state_dict(), tmp_path / "state.pt")
    fresh = core_of(WeightAverage())
    fresh.attach_plugins()
    fresh.plugins[0].load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert fresh.plugins[0].updates_ == core.plugins[0].updates_
    assert all(map(torch.equal, fresh.plugins[0].averages_, core.plugins[0].averages_))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, which the network leaves between two phases")
def test_a_later_phase_continues_the_average_on_the_gpu(recipe):
    plugins = [WeightAverage(decay=0.5), EarlyStopping(patience=1, min_delta=0.5, then="continue", max_extra_epochs=1)]
    run = fit(recipe(plugins), logs=None, trainer={"accelerator": "gpu", "devices": 1, "max_epochs": 3})
    assert [phase.name for phase in run.phases] == ["continue"]


class Thaw(pl.Callback):
    """Unfreezes the first layer at an epoch."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        pl_module.model[0].requires_grad_(trainer.current_epoch >= 1)


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_a_weight_unfrozen_during_the_run_is_averaged_from_then_on(core_of, train, kind):
    core, trail = core_of(WeightAverage(kind, decay=0.5)), Trail()
    train(core, callbacks=[Thaw(), trail], max_epochs=3)
    average = trail.weights[0].clone()
    for t, weight in enumerate(trail.weights[1:], 1):
        share = exponential_share(t, 0.5) if kind == "ema" else equal_share(t)
        average_([average], [weight], share)
    assert not torch.equal(trail.weights[0], trail.weights[-1])
    plugin = core.plugins[0]
    torch.testing.assert_close(dict(zip(plugin.names_, plugin.averages_, strict=True))["0.weight"], average)


@pytest.mark.parametrize("at", [1, 2])
def test_an_average_that_grew_is_resumed_to_the_same_bits(core_of, train, tmp_path, at):
    def core():
        return core_of(WeightAverage(decay=0.5))

    whole, first, second = core(), core(), core()
    train(whole, callbacks=[Thaw()], max_epochs=3)
    keep = pl.callbacks.ModelCheckpoint(tmp_path, filename="x", save_on_train_epoch_end=True)
    train(first, callbacks=[Thaw(), keep], max_epochs=at, enable_checkpointing=True)
    train(second, callbacks=[Thaw()], max_epochs=3, ckpt_path=tmp_path / "x.ckpt")
    ours, theirs = (one.plugins[0].state_dict()["averages"] for one in (whole, second))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_complex_weights_are_averaged():
    average = torch.tensor([2 + 2j])
    average_([average], [torch.tensor([4 - 2j])], 0.5)
    assert average.tolist() == [3 + 0j]


def test_between_the_start_and_now(core_of, train, mlp, weights, digits):
    core = core_of(WeightAverage("start", share=0.25))
    start = weights(core)
    train(core, max_epochs=2)
    end = weights(core)
    with core.evaluation():
        torch.testing.assert_close(weights(core), 0.75 * start + 0.25 * end)
    assert torch.equal(weights(core), end)
    kept = core.plugins[0].state_dict()["averages"]
    assert torch.equal(torch.cat([one.flatten() for one in kept.values()]), start)
    with pytest.raises(UserError, match="has one average; leave start and every out"):
        WeightAverage("start", every=2)
