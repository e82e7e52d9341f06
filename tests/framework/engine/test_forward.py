"""The forward of a micro-batch draws by key, and is repeated without a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from framework.engine.core import Core
from framework.plugin import Plugin

CoreOf = Callable[..., Core]
Train = Callable[..., pl.Trainer]
Weights = Callable[[Core], Tensor]


def test_dropout_is_keyed_so_a_plugin_that_draws_changes_nobody_elses_draws(
    core_of: CoreOf, train: Train, weights: Weights, mlp: Any, digits: Any
) -> None:
    class Draws(Plugin):
        def transform_batch(self, batch: Any, step: Any) -> Any:
            torch.rand(3)
            step.normal(self, batch[0])
            self.order_ = [*getattr(self, "order_", []), batch[1].tolist()]
            return batch

        def transform_sample(self, sample: Any, rng: Any) -> Any:
            rng.normal()
            return sample

        def edit_weights(self, step: Any) -> None:
            torch.rand(2)

    def trained(*plugins: Plugin) -> tuple[Tensor, Any]:
        core = core_of(*plugins, model=nn.Sequential(mlp()[0], nn.Dropout(0.5), nn.Tanh(), mlp()[2]))
        trainer = train(core, max_epochs=2)
        return weights(core), trainer.callback_metrics["val/loss"]

    class Order(Plugin):
        def transform_batch(self, batch: Any, step: Any) -> Any:
            self.order_ = [*getattr(self, "order_", []), batch[1].tolist()]
            return batch

    draws, order = Draws(), Order()
    without, loss = trained(order)
    withal, loss_withal = trained(draws)
    assert torch.equal(without, withal)
    assert order.order_ == draws.order_
    assert loss == loss_withal


class Again(Plugin):
    """Evaluates each micro-batch a second time, and keeps what both evaluations gave."""

    full: bool = False

    def attach(self, core: Core) -> None:
        self.core_, self.seen_ = core, []
        core.observe(self, "0")

    def transform_activation(self, x: Tensor, layer: str, step: Any) -> Tensor:
        self.layer_ = (step.again, x.detach().clone())
        return x

    def penalty(self, step: Any) -> None:
        first = self.layer_
        buffers = {name: value.clone() for name, value in self.core_.model.named_buffers()}
        outcome = self.core_.again.evaluate(step.batch, full_precision=self.full)
        assert outcome.loss.requires_grad
        assert step.again == 0
        for name, value in self.core_.model.named_buffers():
            assert torch.equal(value, buffers[name]), name
        self.seen_.append((first, self.layer_, outcome.loss.detach()))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 10))


def test_a_second_evaluation_draws_the_same_and_leaves_no_trace(
    core_of: CoreOf, train: Train, weights: Weights
) -> None:
    torch.manual_seed(0)
    plain = core_of(model=network())
    model = network()
    model.load_state_dict(plain.model.state_dict())
    core = core_of(again := Again(), model=model)
    for one in (plain, core):
        train(one)
    assert len(again.seen_) == 7
    for (level, first), (second_level, second), _ in again.seen_:
        assert (level, second_level) == (0, 1)
        assert torch.equal(first, second)
    assert torch.equal(weights(core), weights(plain))
    assert core.model[1].num_batches_tracked == 7
    assert core.recorder.history == plain.recorder.history
    # the loss is that of the step's own forward, dropout included: their mean is the epoch's
    losses = torch.stack([loss for *_, loss in again.seen_])
    mean = (losses * torch.tensor([16.0] * 6 + [4.0])).sum() / 100
    assert core.recorder.history[-1].metrics["train/loss"] == pytest.approx(mean.item(), rel=1e-6)


@pytest.mark.parametrize(("full", "dtype"), [(False, torch.bfloat16), (True, torch.float32)])
def test_a_second_evaluation_is_under_autocast_unless_full_precision_is_asked(
    core_of: CoreOf, train: Train, full: bool, dtype: torch.dtype
) -> None:
    core = core_of(again := Again(full=full))
    train(core, precision="bf16-mixed", max_steps=1)
    ((_, first), (_, second), _) = again.seen_[0]
    assert first.dtype == torch.bfloat16
    assert second.dtype == dtype


def test_an_error_of_a_second_evaluation_leaves_no_trace_either(core_of: CoreOf) -> None:
    core = core_of(model=network())
    levels = []

    def fail() -> None:
        with core.again.untraced():
            core.model.train()(torch.randn(5, 64))
            levels.append(core.at.again)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert levels == [1]
    assert core.at.again == 0
    assert core.model[1].num_batches_tracked == 0
    assert torch.equal(core.model[1].running_mean, torch.zeros(12))
