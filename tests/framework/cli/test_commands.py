"""Commands of the command line, from training to explaining."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from framework.cli import main as cli


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "explain"])
def test_help_of_a_command_needs_no_recipe(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"usage: python -m framework {command} RECIPE [flags]" in capsys.readouterr().out


def test_fit_then_evaluate(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, record: Callable[[], dict[str, Any]]
) -> None:
    flags = ["--alpha", "1e-2", "--widths", "[5, 3]", "--kind=relu", "--bias", "false", "--epochs", "2", "--seed", "7"]
    code, out, err = run("fit", *flags, "--trainer.max_epochs", "3", "--trainer.gradient_clip_val=0.5")
    assert (code, err) == (0, "")
    assert "toy_recipe: finished after 3 epochs" in out
    ran = record()
    parameters = {"alpha": 0.01, "widths": [5, 3], "kind": "relu", "bias": False, "epochs": 2}
    assert (ran["parameters"], ran["seed"]) == (parameters, 7)
    assert ran["trainer"] == {"max_epochs": 3, "gradient_clip_val": 0.5}
    assert ran["weights"] == 4 * 5 + 5 * 3 + 3 * 2 + 2

    code, out, _ = run("validate", "--ckpt", "last")
    assert code == 0
    assert f"val/loss  {ran['last']['val/loss']:.4f}" in out
    best = tmp_path / "logs/toy_recipe/version_0/checkpoints/best.ckpt"
    assert run("test", "--ckpt", str(best))[1] == run("test")[1]
    assert "test/loss" in run("test")[1]
    assert run("test", "--run", str(tmp_path / "logs/toy_recipe/version_0"))[0] == 0

    code, out, _ = run("predict", "--out", str(tmp_path / "outputs.pt"))
    assert (code, out) == (0, f"48 outputs in {tmp_path / 'outputs.pt'}\n")
    outputs = torch.load(tmp_path / "outputs.pt")
    assert outputs.shape == (48, 2)
    assert run("predict")[1] == f"{outputs}\n"


def test_plugins_are_changed_from_the_command_line(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, record: Callable[[], dict[str, Any]]
) -> None:
    flags = ["--without", "norm_penalty", "--set", "input_noise.std=0.3", "--set=input_noise.kind=multiplicative"]
    flags += ["--with", "weight_noise:std=1e-3,weights=[0.*, 2.*]", "--with", "shrink:factor=0.5"]
    code, _, err = run("fit", *flags)
    assert (code, err) == (0, "")
    plugins = {plugin["name"]: plugin["settings"] for plugin in record()["plugins"]}
    assert list(plugins) == ["input_noise", "weight_noise", "shrink"]
    assert (plugins["input_noise"]["std"], plugins["input_noise"]["kind"]) == (0.3, "multiplicative")
    assert (plugins["weight_noise"]["std"], plugins["weight_noise"]["weights"]) == (0.001, ["0.*", "2.*"])
    assert plugins["shrink"]["factor"] == 0.5
    assert run("test")[0] == 0


def test_explain_takes_the_same_flags(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    flags = ["--alpha", "0.5", "--with", "shrink", "--without", "input_noise", "--trainer.max_epochs", "9"]
    code, out, err = run("explain", *flags)
    assert (code, err) == (0, "")
    assert "NormPenalty  alpha=0.5" in out
    assert "shrink" in out
    assert "input_noise" not in out
    assert "max_epochs=9" in out
    assert not (tmp_path / "logs").exists()


def test_evaluating_without_a_run_is_reported(run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run("test")
    assert code == 2
    assert "no run of 'toy_recipe'" in err
    assert "fit" in err


def test_a_soup_of_two_runs_is_tested(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for seed in ("0", "1"):
        assert run("fit", "--seed", seed)[0] == 0
    runs = sorted(str(path) for path in tmp_path.glob("logs/*/version_*"))
    soup = str(tmp_path / "soup.safetensors")
    code, out, err = run("soup", "--runs", *runs, "--out", soup, logs=False)
    assert code == 0, err
    assert "mean of 2" in out
    assert f"--run {runs[0]} --ckpt {soup}" in out
    assert run("test", "--run", runs[0], "--ckpt", soup)[0] == 0
    code, _, err = run("soup", "--runs", *runs, logs=False)
    assert (code, err.count("\n")) == (2, 1)
    assert "soup needs a recipe, runs and a file" in err


def test_an_ensemble_of_two_runs(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for seed in ("0", "1"):
        assert run("fit", "--seed", seed)[0] == 0
    file = str(tmp_path / "whole.pt2")
    code, out, err = run("ensemble", "--runs", str(tmp_path / "logs"), "--out", file, logs=False)
    assert code == 0, err
    assert "weight" in out and "test/" in out
    assert f"written: {file}" in out
    code, _, err = run("ensemble", logs=False)
    assert (code, err.count("\n")) == (2, 1)
    assert "ensemble needs a recipe and runs" in err
