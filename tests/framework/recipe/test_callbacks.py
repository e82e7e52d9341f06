from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, callbacks
from torch import nn

from framework import Data, Recipe, Run, UserError, fit
from framework.recipe.callbacks import refused_callbacks

OPTIONS = {"max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def trained(one: Callback, logs: Path) -> Run:
    torch.manual_seed(0)
    x = torch.randn(32, 3)
    part = (x, x.sum(1, keepdim=True))
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    return fit(
        Recipe(model, Data(part, part, batch_size=8), nn.functional.mse_loss, plugins=[one], trainer=OPTIONS), logs=logs
    )


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda folder: callbacks.GradientAccumulationScheduler({0: 1, 1: 2}), "trainer.accumulate_grad_batches"),
        (lambda folder: callbacks.OnExceptionCheckpoint(folder), r"fit\(resume=True\)"),
        (lambda folder: callbacks.StochasticWeightAveraging(0.1), r"WeightAverage\(kind='swa'\)"),
        (lambda folder: callbacks.EMAWeightAveraging(), "WeightAverage"),
        (lambda folder: callbacks.ModelPruning("l1_unstructured"), "prune the network"),
        (lambda folder: callbacks.BatchSizeFinder(), "batch_size"),
        (lambda folder: callbacks.LearningRateFinder(), "max_steps"),
    ],
)
def test_what_cannot_do_what_it_says_is_refused(make: Any, advice: str, tmp_path: Path) -> None:
    one = make(tmp_path)
    with pytest.raises(UserError, match=f"{type(one).__name__}: .*{advice}"):
        trained(one, tmp_path)
    assert not list(tmp_path.glob("*"))


class Mine(callbacks.StochasticWeightAveraging):
    pass


def test_a_subclass_is_refused_by_its_own_name() -> None:
    assert [name for name, _ in refused_callbacks([Mine(0.1), Callback()])] == ["Mine"]


@pytest.mark.parametrize(
    "one",
    [
        callbacks.Timer("00:01:00:00"),
        callbacks.LambdaCallback(on_train_start=lambda trainer, module: None),
        callbacks.LearningRateMonitor(),
        callbacks.EarlyStopping("val/loss"),
        callbacks.DeviceStatsMonitor(cpu_stats=False),
    ],
    ids=lambda one: type(one).__name__,
)
def test_the_others_train(one: Callback, tmp_path: Path) -> None:
    assert trained(one, tmp_path).steps == 8


def test_checkpoints_of_the_users_own_stand_apart(tmp_path: Path) -> None:
    run = trained(callbacks.ModelCheckpoint(save_last=True, save_top_k=0, every_n_epochs=1), tmp_path)
    assert run.folder is not None
    assert sorted(path.name for path in (run.folder / "model_checkpoint").glob("*")) == ["last.ckpt"]
    assert run.best is not None
