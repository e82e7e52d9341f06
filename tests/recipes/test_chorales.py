"""Chorales: reading, and a likelihood that padding and micro-batches leave alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from framework import UserError, fit
from recipes import chorales
from recipes.chorales import NextFrame, NextFrameCore, read_chorales, recipe

QUIET = {"enable_progress_bar": False}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with twelve, four and four short pieces in the file's format."""
    rng = np.random.default_rng(0)
    parts = {}
    for name, count in (("traindata", 12), ("validdata", 4), ("testdata", 4)):
        cells = np.empty((1, count), dtype=object)
        for i in range(count):
            cells[0, i] = (rng.random((3 + i % 5, 88)) < 0.05).astype(np.uint8)
        parts[name] = cells
    savemat(tmp_path / "JSB_Chorales.mat", parts)
    monkeypatch.setattr(chorales, "FILE", chorales.DataFile(chorales.FILE.path))
    return tmp_path


def test_reads_rolls_padded_and_their_lengths(data: Path) -> None:
    (rolls, lengths), val, _ = read_chorales(data)
    assert rolls.shape == (12, 7, 88)
    assert lengths.tolist() == [3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 3, 4]
    assert rolls[0, 3:].sum() == 0 < rolls[0, :3].sum()
    assert len(val[0]) == 4


def test_absent_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chorales, "FILE", chorales.DataFile(chorales.FILE.path))
    with pytest.raises(UserError, match=r"put music/JSB_Chorales\.mat into"):
        recipe(tmp_path)


def test_loss_is_the_sum_over_keys_averaged_over_frames(data: Path) -> None:
    """Against a loop over pieces, frames and keys, each piece by itself and unpadded."""
    rolls, lengths = read_chorales(data)[0]
    model = NextFrame(8)
    core = NextFrameCore(model)
    total, frames = 0.0, 0
    for roll, length in zip(rolls, lengths.tolist(), strict=True):
        p = torch.sigmoid(model(roll[None, : length - 1]))[0].tolist()
        for t in range(length - 1):
            sounding = roll[t + 1].tolist()
            total -= sum(math.log(q if key else 1 - q) for q, key in zip(p[t], sounding, strict=True))
            frames += 1
    assert core.count((rolls, lengths)) == frames
    loss = core.compute_loss((rolls, lengths)).loss
    assert loss is not None
    assert loss.item() == pytest.approx(total / frames, rel=1e-5)


def test_untrained_network_expects_four_keys_a_frame(data: Path) -> None:
    p = torch.sigmoid(NextFrame(8)(read_chorales(data)[0][0]))
    assert 2 < p.sum(dim=2).mean() < 8


def test_micro_batches_of_unequal_length_add_up(data: Path) -> None:
    """Two micro-batches of six pieces train as one batch of twelve does: a mean over frames, not over means."""
    without = ["hidden_noise", "early_stopping", "weight_average"]  # masks of padded outputs depend on the padding
    weights = []
    for size, accumulate in ((12, 1), (6, 2)):
        run = fit(
            recipe,
            parameters={"data": data, "batch_size": size, "width": 8, "epochs": 4},
            trainer={**QUIET, "accumulate_grad_batches": accumulate},
            settings={"optimizer.cls": "SGD", "optimizer.lr": 0.1},
            without=without,
            logs=None,
        )
        weights.append(torch.cat([p.detach().flatten() for p in run.core.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])


def test_a_short_run_learns(data: Path) -> None:
    run = fit(recipe, parameters={"data": data, "epochs": 8, "width": 16}, trainer=QUIET, logs=None)
    history = [entry.metrics["train/loss"] for entry in run.core.recorder.history]
    assert history[-1] < history[0]
    assert run.metrics["val/loss"] < 88 * math.log(2)
