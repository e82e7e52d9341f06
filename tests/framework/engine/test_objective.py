"""The objective: the network as plugins prepare it, its loss, its groups of parameters, and the weights to evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from framework.data import Data
from framework.data.outcome import Outcome
from framework.engine.core import Core
from framework.errors import UserError
from framework.plugin import Plugin
from framework.run.quiet import quiet

CoreOf = Callable[..., Core]
Train = Callable[..., pl.Trainer]
Weights = Callable[[Core], Tensor]


def test_the_model_is_folded_before_the_optimizer_exists(core_of: CoreOf, train: Train) -> None:
    class Grow(Plugin):
        def prepare_model(self, model: nn.Module) -> nn.Module:
            return nn.Sequential(model, nn.Linear(10, 10))

    class Watch(Plugin):
        def prepare_model(self, model: nn.Module) -> nn.Module:
            self.length_ = len(model)
            return model

    core = core_of(Grow(), watch := Watch())
    train(core, max_steps=1)
    assert watch.length_ == 2
    assert sum(len(group["params"]) for group in core.at.optimizer.param_groups) == 6


def test_without_data(core_of: CoreOf, train: Train) -> None:
    with pytest.raises(UserError, match=r"Core has no data: give Recipe\(data=Data"):
        train(core_of(data=None))


def test_weights_beside_the_network_are_refused(core_of: CoreOf, train: Train) -> None:
    class Own(Core):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.head = nn.Linear(2, 2)

    with pytest.raises(UserError, match=r"Own: head.weight, head.bias would never be trained"):
        train(core_of(kind=Own))


class Zeros(Plugin):
    """Evaluates at zero weights."""

    def evaluation_weights(self, core: Core) -> Any:
        @contextmanager
        def swapped() -> Iterator[None]:
            kept = [p.detach().clone() for p in core.model.parameters()]
            with torch.no_grad():
                torch._foreach_zero_(list(core.model.parameters()))
            try:
                yield
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(list(core.model.parameters()), kept)

        return swapped()


def test_evaluation_weights_are_in_for_evaluation_and_nothing_else(
    core_of: CoreOf, train: Train, weights: Weights, tmp_path: Any
) -> None:
    core, plain = core_of(Zeros()), core_of()
    keep = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val/loss", filename="best")
    options = {"max_epochs": 2, "val_check_interval": 0.5, "num_sanity_val_steps": 1, "enable_checkpointing": True}
    trainer = train(core, callbacks=[keep], **options)
    train(plain, max_epochs=2)
    assert torch.equal(weights(core), weights(plain))
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(torch.tensor(10.0).log().item())
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert all(value.any() for value in saved.values())
    with quiet():
        trainer.test(core, verbose=False)
        tested = trainer.callback_metrics["test/loss"].item()
        predicted = torch.cat(trainer.predict(core))
    assert tested == pytest.approx(torch.tensor(10.0).log().item())
    assert not predicted.any()
    assert torch.equal(weights(core), weights(plain))


def test_two_sets_of_evaluation_weights_are_refused(core_of: CoreOf, train: Train) -> None:
    with pytest.raises(UserError, match="evaluation_weights: 'zeros' and 'other' both answer"):
        train(core_of(Zeros(), Zeros(name="other")))


def test_a_network_without_anything_to_train(core_of: CoreOf, train: Train, mlp: Any) -> None:
    with pytest.raises(UserError, match="Sequential has no parameter to train"):
        train(core_of(model=mlp().requires_grad_(False)))


def test_no_loss_is_told(core_of: CoreOf, train: Train) -> None:
    with pytest.raises(UserError, match=r"Core has no loss, and Sequential cannot return it.*give Recipe\(loss=...\)"):
        train(core_of(loss=None))


# ---- the loss over the training part ---------------------------------------------------------------------------------


class Keeps(pl.Callback):
    """Measures the training loss when training has ended."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Core)
        self.before = pl_module.model[0].weight.detach().clone()
        self.loss = pl_module.training_loss()


def test_the_training_loss_is_the_mean_over_the_training_part(core_of: CoreOf, train: Train, data: Data) -> None:
    """The last batch is smaller; nothing is transformed, dropped or left changed."""

    class Doubles(Plugin):
        def transform_sample(self, sample: Any, rng: Any) -> Any:
            return 2 * sample[0], sample[1]

        def transform_batch(self, batch: Any, step: Any) -> Any:
            return 3 * batch[0], batch[1]

    x, y = data.train
    model = nn.Sequential(nn.Linear(64, 12), nn.Dropout(0.5), nn.Linear(12, 10))
    core = core_of(Doubles(), model=model)
    train(core, callbacks=[keeps := Keeps()])
    with torch.no_grad():
        expected = cross_entropy(model[2](model[0](x)), y).item()
    assert keeps.loss == pytest.approx(expected, rel=1e-6)
    assert torch.equal(model[0].weight, keeps.before)
    assert len(y) % data.batch_size != 0


def test_the_training_loss_is_measured_at_the_weights_to_evaluate(core_of: CoreOf, train: Train) -> None:
    train(core_of(Zeros()), callbacks=[keeps := Keeps()])
    assert keeps.loss == pytest.approx(torch.tensor(10.0).log().item())


def test_the_training_loss_counts_by_what_the_loss_is_a_mean_over(core_of: CoreOf, train: Train, data: Data) -> None:
    class ByClass(Core):
        """A mean over the samples of class zero, of which batches hold more or fewer."""

        def count(self, batch: Any) -> Tensor:
            return (batch[1] == 0).sum()

        def compute_loss(self, batch: Any) -> Outcome:
            x, y = batch
            chosen = y == 0
            return Outcome(self.data_loss(self(x[chosen]), y[chosen]) if chosen.any() else None)

    core = core_of(kind=ByClass)
    train(core, callbacks=[keeps := Keeps()])
    x, y = data.train
    with torch.no_grad():
        expected = cross_entropy(core.model(x[y == 0]), y[y == 0]).item()
    assert keeps.loss == pytest.approx(expected, rel=1e-6)


def test_training_batches_apart_from_training_are_transformed_and_change_nothing(
    core_of: CoreOf, train: Train, data: Data
) -> None:
    class Doubles(Plugin):
        def transform_sample(self, sample: Any, rng: Any) -> Any:
            return 2 * sample[0], sample[1]

    class Looks(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert isinstance(pl_module, Core)
            self.seen = [list(pl_module.training_batches(3)) for _ in range(2)]

    core = core_of(Doubles())
    train(core, callbacks=[looks := Looks()])
    loader = data.train_loader(seed=core.seed)
    loader.set_epoch(core.at.epoch)
    plain = [window.batches[0] for window in loader][:3]
    for seen in looks.seen:
        assert len(seen) == 3
        for (x, y), (given, target) in zip(seen, plain, strict=True):
            assert torch.equal(x, 2 * given)
            assert torch.equal(y, target)
