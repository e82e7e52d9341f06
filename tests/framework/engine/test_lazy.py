from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from framework import Data, Recipe, UserError, fit
from framework.engine.core import Core

OPTIONS = {"max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Dropout(), nn.Linear(4, 1))


def part() -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    return x, x.sum(1, keepdim=True)


def test_one_batch_gives_the_shapes_and_leaves_no_trace() -> None:
    model: Any = lazy()
    model[2].eval()
    Core(model, nn.functional.mse_loss, data=Data(part(), batch_size=4))
    assert model[0].weight.shape == (4, 3)
    assert model[1].num_batches_tracked == 0 and model[1].running_mean.tolist() == [0] * 4
    assert [layer.training for layer in model] == [True, True, False, True]


def test_it_trains_and_resumes(tmp_path: Path) -> None:
    def recipe() -> Recipe:
        return Recipe(lazy(), Data(part(), part(), batch_size=4), nn.functional.mse_loss, trainer=OPTIONS)

    run = fit(recipe, logs=tmp_path)
    again = fit(recipe, logs=tmp_path, resume=run.folder, trainer={"max_epochs": 3})
    whole = fit(recipe, logs=None, trainer={"max_epochs": 3})
    assert torch.equal(again.core.model[0].weight, whole.core.model[0].weight)


def test_a_pass_that_fails_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"has lazy layers.*call the network once on a batch"):
        Core(nn.Sequential(nn.LazyLinear(4), nn.Linear(5, 1)), nn.functional.mse_loss, data=Data(part()))
