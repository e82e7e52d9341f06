"""Entry point of the command line: help, exit codes, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework import __version__
from framework.cli import main as cli
from framework.cli.main import main

ROOT = Path(__file__).parents[3]


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "pytorch_lightning", "jsonargparse", "albumentations", "sklearn"]
    start = "import sys; from framework.cli.main import main; main(['--help'])"
    code = f"{start}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("fit", "validate", "test", "predict", "explain", "plugins"):
        assert f"\n  {command} " in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jtilde {__version__}\n"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["fti"], "error: no such command: fti; did you mean 'fit'?\n"),
        (["fit"], "error: the recipe comes first: python -m framework fit RECIPE [flags]\n"),
        (["fit", "--alpha", "3"], "error: the recipe comes first: python -m framework fit RECIPE [flags]\n"),
        (["fit", "/nowhere/at_all.py"], "error: no such recipe: /nowhere/at_all.py\n"),
        (["plugins", "all"], "error: plugins takes no arguments; received 'all'\n"),
    ],
)
def test_a_wrong_command_gets_one_line(args: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 2
    assert capsys.readouterr() == ("", line)


def test_a_mistake_within_a_recipe_is_one_line(run: Callable[..., tuple[int, str, str]], recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("InputNoise(0.1)", "InputNoise(-0.1)"))
    assert run("fit")[::2] == (2, "error: InputNoise(std=-0.1): std must be a number >= 0\n")


def test_ctrl_c_ends_a_run_with_its_summary(
    recipe_file: Path, tmp_path: Path, record: Callable[[], dict[str, Any]]
) -> None:
    # a network that takes its time: the signal finds the run in a forward, as it mostly does in life
    slow = (
        "class Slow(nn.Module):\n    def forward(self, x):\n        time.sleep(0.05)\n        return x\n\ndef recipe("
    )
    changed = (
        recipe_file.read_text()
        .replace("def recipe(", slow)
        .replace("nn.Sequential(*layers", "nn.Sequential(Slow(), *layers")
    )
    recipe_file.write_text(f"import time\n{changed}")
    # a shell's background job ignores the signal, and its children inherit that
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    program += "from framework.cli.main import main; sys.exit(main())"
    flags = ["fit", str(recipe_file), "--epochs", "100000", "--logs", str(tmp_path / "logs")]
    with subprocess.Popen(
        [sys.executable, "-c", program, *flags],
        cwd=ROOT,
        env={**os.environ, "CI": "true"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("epoch"):
                time.sleep(0.1)
                child.send_signal(signal.SIGINT)
                break
        out, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert "toy_recipe: interrupted after" in out
    assert "Traceback" not in err
    assert record()["status"] == "interrupted"


_MISTAKE = """
import torch
from torch import nn
from framework import Data, Recipe


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 1)

    def forward(self, x):
        return self.b(self.a(x))


def recipe():
    x = torch.randn(16, 3)
    options = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    return Recipe(Net(), Data((x, x[:, :1])), nn.functional.mse_loss, trainer=options)
"""


def test_a_mistake_shows_the_users_own_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mistaken.py"
    file.write_text(_MISTAKE)
    assert main(["fit", str(file), "--logs", str(tmp_path)]) == 2
    first, *lines = capsys.readouterr().err.strip().splitlines()
    assert first.startswith("error: step 0: layer 'b' (Linear) takes 5 features and got 4")
    assert any("return self.b(self.a(x))" in line for line in lines) and "torch/nn" not in "".join(lines)
    assert main(["fit", str(file), "--logs", str(tmp_path), "--debug"]) == 2
    assert "torch/nn" in capsys.readouterr().err
