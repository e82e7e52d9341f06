"""A small recipe file, and commands that run on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framework.cli import main as cli

RECIPE = '''
from typing import Annotated, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, Plugin, Recipe
from framework.settings import Bounds, NonNegative
from plugins.input_noise import InputNoise
from plugins.norm_penalty import NormPenalty


class Shrink(Plugin):
    """Scale the gradient."""

    factor: NonNegative = 1.0

    def transform_gradients(self, step):
        for p in step.optimizer.param_groups[0]["params"]:
            p.grad.mul_(self.factor)


def recipe(
    alpha: NonNegative = 1e-3,
    widths: list[int] = [6],
    kind: Literal["tanh", "relu"] = "tanh",
    bias: bool = True,
    epochs: int = 1,
) -> Recipe:
    """Tell sums above zero from sums below.

    A toy.

    Args:
        alpha: strength of the penalty.
        widths: units of the hidden layers.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 4, generator=generator)
    data = Data(*3 * [(x, (x.sum(1) > 0).long())], batch_size=16)
    sizes = [4, *widths]
    layers = [
        part
        for a, b in zip(sizes, sizes[1:])
        for part in (nn.Linear(a, b, bias=bias), nn.Tanh() if kind == "tanh" else nn.ReLU())
    ]
    return Recipe(
        nn.Sequential(*layers, nn.Linear(sizes[-1], 2)),
        data,
        cross_entropy,
        plugins=[InputNoise(0.1), NormPenalty(alpha)],
        trainer={"max_epochs": epochs, "accelerator": "cpu"},
    )
'''


@pytest.fixture
def recipe_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "toy_recipe.py"
    path.write_text(RECIPE)
    before = list(sys.path)
    yield path
    sys.path[:] = before
    sys.modules.pop("toy_recipe", None)


@pytest.fixture
def run(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command on the recipe and returns exit code, output and errors."""

    def run_command(command: str, *flags: str, logs: bool = True) -> tuple[int, str, str]:
        where = ["--logs", str(tmp_path / "logs")] if logs and command != "explain" else []
        code = cli.main([command, str(recipe_file), *flags, *where])
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture
def record(tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """Return a function that reads ``run.json`` of the first run."""
    return lambda: json.loads((tmp_path / "logs" / "toy_recipe" / "version_0" / "run.json").read_text())
