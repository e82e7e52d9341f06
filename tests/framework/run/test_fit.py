"""``fit``: what it returns and writes, and how a run ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from framework import Recipe, Run, fit, validate
from framework.data import Data
from framework.errors import UserError
from framework.plugin import Plugin

MakeRecipe = Callable[..., Recipe]


class Shrink(Plugin):
    factor: float = 0.5

    def transform_gradients(self, step: Any) -> None:
        for group in step.optimizer.param_groups:
            torch._foreach_mul_([p.grad for p in group["params"]], self.factor)


def test_a_run_returns_metrics_checkpoints_and_the_network(recipe: MakeRecipe, tmp_path: Path) -> None:
    run = fit(recipe, logs=tmp_path, trainer={"max_epochs": 3})
    assert (run.status, run.epochs, run.steps, run.name) == ("finished", 3, 21, "digits_mlp")
    assert run.folder == tmp_path / "digits_mlp" / "version_0"
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "gap/loss"} <= set(run.metrics)
    assert run.best == run.folder / "checkpoints" / "best.ckpt"
    assert run.last_checkpoint == run.folder / "checkpoints" / "last.ckpt"
    assert all(torch.isfinite(p).all() for p in run.core.model.parameters())
    assert any(run.folder.glob("events.out.tfevents*"))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(recipe: MakeRecipe) -> None:
    def weights(seed: int) -> Tensor:
        return torch.cat([p.flatten() for p in fit(recipe, seed=seed, logs=None).core.model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_checkpoints_hold_plain_types_and_the_last_and_best_weights(recipe: MakeRecipe, tmp_path: Path) -> None:
    run = fit(recipe(plugins=[Shrink()]), logs=tmp_path, trainer={"max_epochs": 2})
    for path in (run.best, run.last_checkpoint):
        content = torch.load(path, weights_only=True)
        assert set(content["state_dict"]) == {f"model.{name}" for name, _ in run.core.model.named_parameters()}
    for name, p in run.core.model.named_parameters():
        assert torch.equal(content["state_dict"][f"model.{name}"], p)


def test_folders_count_up(recipe: MakeRecipe, tmp_path: Path) -> None:
    assert [fit(recipe, logs=tmp_path).folder.name for _ in range(2)] == ["version_0", "version_1"]


def test_without_logs_nothing_is_written(recipe: MakeRecipe, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run = fit(recipe, logs=None)
    assert (run.folder, run.best, run.last_checkpoint) == (None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_edits_from_outside(recipe: MakeRecipe) -> None:
    plain = fit(recipe, logs=None)
    without = fit(recipe(plugins=[Shrink()]), logs=None, without=["shrink"])
    assert without.metrics == plain.metrics
    with pytest.raises(UserError, match="shrnk"):
        fit(recipe(plugins=[Shrink()]), logs=None, without=["shrnk"])


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accelerator": "gpu"}, "trainer options: .*gpu"),
        ({"accelerator": "abacus"}, "trainer options: .*abacus"),
        ({"precision": "16-mixed"}, "trainer.precision='16-mixed': no device of this machine supports it"),
        ({"precision": "17"}, "trainer options: .*17"),
        ({"strategy": "telepathy"}, "trainer options: .*telepathy"),
        ({"max_epoch": 3}, "trainer.max_epoch: .*did you mean 'max_epochs'"),
        ({"gradient_clip_val": -1}, "gradient_clip_val=-1"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0"),
        ({"val_check_interval": 100}, "val_check_interval"),
        ({"limit_train_batches": -1}, "limit_train_batches"),
    ],
)
@pytest.mark.filterwarnings("ignore:You are using `torch.load`")
def test_wrong_options(recipe: MakeRecipe, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        fit(recipe, logs=None, trainer=options)
    assert "\n" not in str(caught.value)


def test_a_monitor_that_is_never_logged(recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"val/acuracy.*val/accuracy") as caught:
        fit(recipe(monitor="val/acuracy"), logs=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "1"])
def test_wrong_seeds(recipe: MakeRecipe, seed: Any) -> None:
    with pytest.raises(UserError, match=r"seed=.*whole number from 0"):
        fit(recipe, seed=seed, logs=None)


def test_mistakes_leave_no_folder(recipe: MakeRecipe, tmp_path: Path) -> None:
    for options in ({"max_epoch": 1}, {"gradient_clip_val": -1}):
        with pytest.raises(UserError):
            fit(recipe, logs=tmp_path, trainer=options)
    assert list(tmp_path.iterdir()) == []


# ---- two processes ---------------------------------------------------------------------------------------------------


def test_a_run_on_two_ranks(recipe: MakeRecipe, data: Data, tmp_path: Path) -> None:
    two = {"strategy": "ddp_fork", "devices": 2, "max_epochs": 2, "callbacks": []}
    half = Data(data.train, data.val, data.test, batch_size=8)
    run = fit(recipe(data=half), logs=tmp_path, trainer=two)
    one = fit(recipe, logs=tmp_path, trainer={"max_epochs": 2})
    assert run.status == "finished"
    torch.testing.assert_close(run.core.model.state_dict(), one.core.model.state_dict(), rtol=1e-4, atol=1e-5)
    assert run.best is not None


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_evaluated_in_the_precision_that_it_was_trained_in(recipe: MakeRecipe) -> None:
    run = fit(recipe, logs=None, trainer={"precision": "64-true"})
    assert validate(run)["val/loss"] == pytest.approx(run.metrics["val/loss"], rel=1e-7)


def test_a_run_ends_with_its_trainer_callbacks_own(recipe: MakeRecipe) -> None:
    class Mine(pl.Callback):
        epochs = 0

        def on_train_epoch_end(self, *args: Any) -> None:
            self.epochs += 1

    mine = Mine()
    fit(recipe, logs=None, trainer={"callbacks": [mine], "max_epochs": 2})
    assert mine.epochs == 2


def test_fit_returns_a_run(recipe: MakeRecipe) -> None:
    assert isinstance(fit(recipe, logs=None, trainer={"fast_dev_run": True}), Run)
