"""Running statistics are those of the training batches, whatever they were, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, Recipe
from framework.plugin.running import estimate, norms_of, statistics_of
from tests.conftest import QUICK


def test_statistics_are_means_over_batches(data: Data) -> None:
    model = nn.Sequential(nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 10))
    core = Recipe(model, data, cross_entropy, trainer={"max_epochs": 1}).make_core(0, {})
    norm: Any = model[1]

    class Look(pl.Callback):
        def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            before = torch.get_rng_state()
            with torch.inference_mode(False), torch.no_grad(), core.as_in_training():
                assert norms_of(core.model) == [norm]
                estimate(core, [norm], 3, 5)
                batches = [model[0](x) for x, _ in core.training_batches(3)]
            assert torch.equal(torch.get_rng_state(), before)
            means = torch.stack([one.mean(0) for one in batches]).mean(0)
            variances = torch.stack([one.var(0) for one in batches]).mean(0)
            torch.testing.assert_close(norm.running_mean, means)
            torch.testing.assert_close(norm.running_var, variances)
            assert norm.momentum == 0.1
            assert len(statistics_of([norm])) == 3

    pl.Trainer(**QUICK, callbacks=[Look()]).validate(core, verbose=False)


def test_frozen_norms_are_left_alone() -> None:
    norm = nn.BatchNorm1d(3)
    assert norms_of(nn.Sequential(norm)) == [norm]
    assert norms_of(nn.Sequential(norm).eval()) == []
    assert norms_of(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))) == []
