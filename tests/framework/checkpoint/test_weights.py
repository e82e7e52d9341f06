"""Runs that begin with the weights of a file, and files that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from framework import Recipe, UserError, fit
from framework.checkpoint.file import read_checkpoint
from framework.checkpoint.weights import weights_in
from framework.run.evaluate import test as evaluate

MakeRecipe = Callable[..., Recipe]


def test_a_new_run_from_weights(recipe: MakeRecipe, tmp_path: Path) -> None:
    first = fit(recipe(), logs=tmp_path)
    best = first.best
    assert best is not None
    seen = []

    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, core: pl.LightningModule) -> None:
            seen.append({name: value.clone() for name, value in core.state_dict().items()})
            seen.append(trainer.global_step)  # type: ignore[arg-type]

    run = fit(recipe(), seed=5, logs=tmp_path, weights=best, trainer={"callbacks": [Look()]})
    expected = read_checkpoint(best)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in seen[0].items())
    assert seen[1] == 0
    assert (run.folder, run.epochs) == (tmp_path / "recipe" / "version_1", 1)
    assert json.loads((tmp_path / "recipe" / "version_1" / "run.json").read_text())["status"] == "finished"


def test_weights_from_files_of_others(recipe: MakeRecipe, tmp_path: Path) -> None:
    first = fit(recipe(), logs=tmp_path)
    expected = first.core.model.state_dict()
    plain, lightning, odd = tmp_path / "plain.pt", tmp_path / "lightning.ckpt", tmp_path / "odd.pt"
    torch.save(expected, plain)
    torch.save({"state_dict": expected, "epoch": 3, "pytorch-lightning_version": "2.6.0"}, lightning)
    torch.save({"state_dict": 5}, odd)
    for path in (plain, lightning):
        again = fit(recipe(), seed=5, logs=None, weights=path)
        assert again.metrics["val/loss"] < first.metrics["val/loss"]
        assert all(torch.equal(value, expected[name]) for name, value in weights_in(path).items())
    with pytest.raises(UserError, match=r"weights='.*odd.pt': "):
        fit(recipe(), logs=None, weights=odd)


def test_weights_of_another_network_are_refused(recipe: MakeRecipe, tmp_path: Path) -> None:
    best = fit(recipe(), logs=tmp_path).best
    made = recipe()
    made.model[-1] = nn.Linear(12, 11)
    with pytest.raises(UserError, match=r"weights='.*best.ckpt': of another network: .*size mismatch") as caught:
        fit(made, logs=tmp_path, weights=best)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "recipe" / "version_1").exists()


def test_weights_from_a_file_that_is_none(recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"x.ckpt: damaged, or not a checkpoint"):
        fit(recipe(), logs=tmp_path / "logs", weights=tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"y.ckpt: no such checkpoint"):
        weights_in(tmp_path / "y.ckpt")
    assert not (tmp_path / "logs").exists()


def test_the_argument_is_named(recipe: MakeRecipe, tmp_path: Path) -> None:
    run = fit(recipe(), logs=tmp_path)
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"^ckpt='.*x.safetensors': cannot be read"):
        evaluate(lambda: recipe(), run=run.folder, ckpt=file)
