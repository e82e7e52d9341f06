from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from framework import Data, Interrupted, Recipe, Run, UserError, export, fit, predict, validate
from plugins.early_stopping import EarlyStopping
from plugins.norm_penalty import NormPenalty
from plugins.sam import SAM
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
BARE = {**QUIET, "logger": False, "enable_checkpointing": False}
FORMS = ("alone", "list", "dictionary", "lists", "lists and one dictionary", "plateau", "step")


class Digits(pl.LightningModule):
    """A module as its author would write it: dropout, running statistics, metrics, hooks and a schedule."""

    def __init__(self, form: str = "dictionary", width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(), nn.Linear(width, 3)
        )
        self.accuracy = MulticlassAccuracy(3)
        self.calls: list[str] = []
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x + 0.1 * torch.randn_like(x)), y)
        self.losses.append(loss.item())
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self.net(x)
        self.accuracy(logits, y)
        self.log("val_loss", nn.functional.cross_entropy(logits, y), prog_bar=True)
        self.log("val_accuracy", self.accuracy)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0]).argmax(1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.calls.append(f"start {batch_idx}")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append(f"end {batch_idx} {outputs['loss'].requires_grad}")

    def on_train_epoch_end(self) -> None:
        self.log("epochs", float(self.current_epoch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        halving = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return {
            "alone": optimizer,
            "list": [optimizer],
            "dictionary": {"optimizer": optimizer, "lr_scheduler": halving},
            "lists": ([optimizer], [halving]),
            "lists and one dictionary": ([optimizer], {"scheduler": halving, "frequency": 2}),
            "plateau": {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val_loss"},
            "step": {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": halving, "interval": "step", "frequency": 3},
            },
        }[self.hparams["form"]]


def loaders(samples: int = 44) -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 4, generator=generator)
    part = TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 1).long())
    return DataLoader(part, batch_size=8, shuffle=True), DataLoader(part, batch_size=16)


def alone(form: str = "dictionary", **options: Any) -> tuple[Digits, pl.Trainer]:
    pl.seed_everything(0, verbose=False)
    module, (train, val) = Digits(form), loaders()
    return module, under_lightning(module, train, val, **options)


def under_lightning(module: Any, *loaders: Any, **options: Any) -> pl.Trainer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice
        trainer = pl.Trainer(**{"max_epochs": 3, **BARE, **options})
        trainer.fit(module, *loaders)
    return trainer


def here(form: str = "dictionary", plugins: Any = (), options: Any = None, **given: Any) -> tuple[Digits, Run]:
    pl.seed_everything(0, verbose=False)
    module, (train, val) = Digits(form), loaders()
    trainer = {"max_epochs": 3, **QUIET, **(options or {})}
    recipe = Recipe(module=module, data=Data(train, val), plugins=list(plugins), trainer=trainer, monitor="val_loss")
    return module, fit(recipe, **{"logs": None, **given})


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("form", FORMS)
def test_the_bits_are_lightnings(form: str) -> None:
    bare, trainer = alone(form)
    ours, run = here(form)
    assert same(bare, ours)
    assert bare.losses == ours.losses and bare.calls == ours.calls
    assert run.steps == trainer.global_step == 18
    for tag, value in trainer.callback_metrics.items():
        assert run.last[tag] == float(value), tag


@pytest.mark.parametrize(
    "options", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}]
)
def test_options_of_the_trainer(options: dict[str, Any]) -> None:
    bare, trainer = alone(**options)
    ours, run = here(options=options)
    assert same(bare, ours) and run.steps == trainer.global_step
    assert bare.calls == ours.calls


@pytest.mark.parametrize(
    "plugins", [[], [NormPenalty(alpha=0.01), WeightNoise(std=0.1), SAM(), WeightAverage(decay=0.5)]]
)
@pytest.mark.parametrize("step", [2, 6, 9])
def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(tmp_path: Path, plugins: list[Any], step: int) -> None:
    whole, run = here(plugins=plugins, logs=tmp_path / "whole")
    with pytest.raises(Interrupted) as caught:
        here(plugins=plugins, logs=tmp_path / "cut", options={"callbacks": [_Kill(step)]})
    torch.rand(3)
    resumed, after = here(plugins=plugins, logs=tmp_path / "cut", resume=caught.value.run.folder)
    assert same(whole, resumed) and after.last == run.last


class _Kill(pl.Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self._step:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_plugin_that_changes_nothing_changes_no_bit() -> None:
    plain, _ = here()
    for plugin in (NormPenalty(alpha=1e-30), SAM(rho=1e-30), WeightNoise(std=1e-30)):
        assert same(plain, here(plugins=[plugin])[0]), plugin


def test_a_second_evaluation_leaves_no_trace() -> None:
    plain, before = here()
    ours, run = here(plugins=[SAM(rho=1e-30)])
    assert ours.losses == plain.losses and ours.calls == plain.calls
    assert run.last == before.last


def test_our_checkpoint_is_read_by_the_class(tmp_path: Path) -> None:
    module, run = here(logs=tmp_path)
    assert run.last_checkpoint is not None
    assert same(Digits.load_from_checkpoint(run.last_checkpoint), module)


class _Two(Digits):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[0].parameters(), 0.1), torch.optim.SGD(self.net[4].parameters(), 0.1)


class _Manual(Digits):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (_Two, "returned 2 optimizers"),
        (_Manual, "steps its optimizers itself"),
        (nn.Linear, "must be a LightningModule"),
    ],
)
def test_what_cannot_be_trained_is_refused(kind: Any, words: str) -> None:
    module = kind(2, 2) if kind is nn.Linear else kind()
    with pytest.raises(UserError, match=words):
        fit(Recipe(module=module, data=Data(*loaders()), trainer={"max_epochs": 1, **QUIET}), logs=None)


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        for index in range(20):
            yield torch.full((4,), float(index)), index % 3


def test_a_stream_gives_lightnings_bits() -> None:
    modules = []
    for bare in (True, False):
        pl.seed_everything(0, verbose=False)
        module, train = Digits(), DataLoader(_Stream(), batch_size=8)
        if bare:
            under_lightning(module, train, max_epochs=2)
        else:
            fit(Recipe(module=module, data=Data(train), trainer={"max_epochs": 2, **QUIET}), logs=None)
        modules.append(module)
    assert same(*modules)


def test_the_modules_own_monitor_and_one_line_from_python(tmp_path: Path) -> None:
    module, (train, val) = Digits("plateau"), loaders()
    stop = EarlyStopping(patience=9)
    run = fit(module, Data(train, val, val), [stop], trainer={"max_epochs": 3, **QUIET}, logs=tmp_path)
    assert run.recipe.monitor == "val_loss" and run.best_epoch is not None
    assert run.metrics["val_loss"] == stop.best_.metrics["val_loss"]
    assert validate(run)["val_loss"] == pytest.approx(run.metrics["val_loss"], abs=1e-6)
    assert predict(run).shape == (44,)


def test_a_module_whose_losses_have_other_names() -> None:
    class Named(Digits):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("odd", 1.0)

    with pytest.warns(UserWarning, match=r"Named logs no metric .* one of: odd"):
        run = fit(Named(), Data(*loaders()), trainer={"max_epochs": 2, **QUIET}, logs=None)
    assert run.best_epoch is None


def test_export_for_load_from_checkpoint(tmp_path: Path) -> None:
    module, run = here(plugins=[WeightAverage(decay=0.5)], logs=tmp_path)
    export(run, tmp_path / "model.ckpt")
    read = Digits.load_from_checkpoint(tmp_path / "model.ckpt")
    assert not torch.equal(read.net[0].weight, module.net[0].weight)  # the average
    with run.core.evaluation():
        assert torch.equal(read.net[0].weight, module.net[0].weight)
    with pytest.raises(UserError, match=r"write FILE\.ckpt"):
        export(run, tmp_path / "model.pt2")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:It is recommended to use .self.log")
def test_two_ranks_are_lightnings_two_ranks() -> None:
    ranks = {"devices": 2, "strategy": "ddp_fork"}
    bare, _ = alone(**ranks)
    ours, run = here(options=ranks)
    assert run.steps == 9
    for name, value in bare.state_dict().items():
        assert torch.allclose(value, ours.state_dict()[name], atol=1e-6), name
    beside, _ = here(plugins=[NormPenalty(alpha=0.01), SAM()], options=ranks)
    assert not same(ours, beside)
