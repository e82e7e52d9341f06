from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from framework import __version__
from framework.cli import main as cli

ROOT = Path(__file__).parents[3]

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


def record(tmp_path: Path, version: int = 0) -> dict[str, object]:
    return json.loads((tmp_path / "logs" / "toy_recipe" / f"version_{version}" / "run.json").read_text())


# ---- help ------------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "pytorch_lightning", "jsonargparse", "albumentations", "sklearn"]
    start = "import sys; from framework.cli.main import main; main(['--help'])"
    code = f"{start}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("fit", "validate", "test", "predict", "explain", "plugins"):
        assert f"\n  {command} " in done.stdout


def test_help_of_a_recipe_lists_its_parameters_with_defaults_and_help(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("fit", "--help", logs=False)
    text = " ".join(out.split())
    assert code == 0
    assert "Tell sums above zero from sums below. A toy. options:" in text
    assert "--alpha ALPHA strength of the penalty. (type: float, default: 0.001)" in text
    assert "--widths" in text
    assert "--kind {tanh,relu}" in text
    assert "--set PLUGIN.FIELD=VALUE" in text


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "explain"])
def test_help_of_a_command_needs_no_recipe(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"usage: python -m framework {command} RECIPE [flags]" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jtilde {__version__}\n"


# ---- orders ----------------------------------------------------------------------------------------------------------


def test_fit_then_evaluate(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    flags = ["--alpha", "1e-2", "--widths", "[5, 3]", "--kind=relu", "--bias", "false", "--epochs", "2", "--seed", "7"]
    code, out, err = run("fit", *flags, "--trainer.max_epochs", "3", "--trainer.gradient_clip_val=0.5")
    assert (code, err) == (0, "")
    assert "toy_recipe: finished after 3 epochs" in out
    ran = record(tmp_path)
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


def test_plugins_are_changed_from_the_command_line(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    flags = ["--without", "norm_penalty", "--set", "input_noise.std=0.3", "--set=input_noise.kind=multiplicative"]
    flags += ["--with", "weight_noise:std=1e-3,weights=[0.*, 2.*]", "--with", "shrink:factor=0.5"]
    code, _, err = run("fit", *flags)
    assert (code, err) == (0, "")
    plugins = {plugin["name"]: plugin["settings"] for plugin in record(tmp_path)["plugins"]}
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


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--alhpa", "1"], "no such flag: --alhpa; did you mean '--alpha'?"),
        (["--alpha", "much"], "--alpha much: alpha must be a number >= 0"),
        (["--alpha=-1"], "toy_recipe.recipe(alpha=-1.0): alpha must be a number >= 0"),
        (["--alpha", "nan"], "--alpha nan: alpha must be a finite number"),
        (["--alpha"], "--alpha needs a value"),
        (["--epochs", "2.5"], "--epochs 2.5: epochs must be a whole number"),
        (["--kind", "tahn"], "--kind tahn: kind must be one of 'tanh', 'relu'; did you mean 'tanh'?"),
        (["--widths", "[a]"], "--widths [a]: widths must be a list whose every value is a whole number"),
        (["stray"], "unrecognized arguments: stray"),
        (
            ["--set", "norm_penalty"],
            "--set norm_penalty: write it as PLUGIN.FIELD=VALUE, such as weight_noise.std=0.05",
        ),
        (["--set", "norm_penatly.alpha=1"], "the recipe has no plugin 'norm_penatly'; did you mean 'norm_penalty'?"),
        (["--set", "norm_penalty.alhpa=1"], "NormPenalty has no setting 'alhpa'; did you mean 'alpha'?"),
        (["--set", "input_noise.std=-1"], "InputNoise(std=-1.0): std must be a number >= 0"),
        (["--with", "input_nois"], "no plugin is called 'input_nois'; did you mean 'input_noise'?"),
        (
            ["--with", "mixup:0.3"],
            "--with mixup:0.3: write '0.3' as FIELD=VALUE, such as input_noise:std=0.1,kind=masking",
        ),
        (["--with", "mixup:alhpa=0.3"], "Mixup has no setting 'alhpa'; did you mean 'alpha'?"),
        (["--without", "mixup"], "--without mixup: the recipe has no plugin 'mixup'; known: input_noise, norm_penalty"),
        (["--trainer.max_epcohs", "3"], "has no such option; did you mean 'max_epochs'?"),
        (["--trainer.max_epochs", "many"], "--trainer.max_epochs many: max_epochs must be a whole number or None"),
        (["--trainer.max_epochs"], "--trainer.max_epochs needs a value, such as --trainer.max_epochs=VALUE"),
    ],
)
def test_a_mistake_gets_one_line(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, flags: list[str], line: str
) -> None:
    code, out, err = run("fit", *flags, logs="=" not in flags[-1] and len(flags) > 1)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith(f"{line}\n")
    assert err.count("\n") == 1
    assert not (tmp_path / "logs").exists()


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


def test_evaluating_without_a_run_is_told(run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run("test")
    assert code == 2
    assert "no run of 'toy_recipe'" in err
    assert "fit" in err


@pytest.mark.parametrize("name", ["seed", "logs", "ckpt", "trainer", "help"])
def test_a_parameter_may_not_have_the_name_of_a_flag(
    run: Callable[..., tuple[int, str, str]], recipe_file: Path, name: str
) -> None:
    recipe_file.write_text(RECIPE.replace("    epochs: int = 1,", f"    epochs: int = 1, {name}: int = 0,"))
    code, _, err = run("fit")
    assert code == 2
    assert err == f"error: {recipe_file}: the recipe's parameter {name!r} has the name of a flag; rename it\n"


def test_a_parameter_without_default_is_asked_for(run: Callable[..., tuple[int, str, str]], recipe_file: Path) -> None:
    recipe_file.write_text(RECIPE.replace("alpha: NonNegative = 1e-3", "alpha: NonNegative"))
    assert run("fit")[::2] == (2, "error: the recipe needs --alpha\n")


# ---- recipes that raise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "last"),
    [
        ("import torch\n", "import torch\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import torch\n", "import torhc\n", "ModuleNotFoundError: No module named 'torhc'"),
        ("import torch\n", "import torch\ndef broken(:\n", "SyntaxError: invalid syntax"),
        ('    """Tell', '    raise KeyError(alpha)\n    """Tell', "KeyError: 0.001"),
        ("nn.Sequential(*layers", "nn.Sequential(torch.zeros(2) @ torch.zeros(3), *layers", "RuntimeError: .*size.*"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "explain"])
def test_a_recipe_that_raises_shows_its_own_traceback(
    run: Callable[..., tuple[int, str, str]], recipe_file: Path, command: str, old: str, new: str, last: str
) -> None:
    recipe_file.write_text(RECIPE.replace(old, new, 1))
    code, out, err = run(command)
    assert (code, out) == (1, "")
    assert f'File "{recipe_file}", line ' in err
    assert str(ROOT / "framework") not in err
    assert "importlib" not in err
    assert re.search(last, err.splitlines()[-1])


def test_a_network_that_raises_shows_its_own_traceback(
    run: Callable[..., tuple[int, str, str]], recipe_file: Path
) -> None:
    broken = "class Broken(nn.Module):\n    def forward(self, x):\n        raise OSError('lost')\n\ndef recipe("
    changed = RECIPE.replace("def recipe(", broken).replace("nn.Sequential(*layers", "nn.Sequential(Broken(), *layers")
    recipe_file.write_text(changed)
    code, _, err = run("fit")
    assert code == 1
    assert err.splitlines()[-1] == "OSError: lost"
    assert "in forward" in err
    assert str(ROOT / "framework") not in err


def test_a_mistake_within_a_recipe_is_one_line(run: Callable[..., tuple[int, str, str]], recipe_file: Path) -> None:
    recipe_file.write_text(RECIPE.replace("InputNoise(0.1)", "InputNoise(-0.1)"))
    assert run("fit")[::2] == (2, "error: InputNoise(std=-0.1): std must be a number >= 0\n")


# ---- the way out -----------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_run_with_its_summary(recipe_file: Path, tmp_path: Path) -> None:
    # a network that takes its time: the signal finds the run in a forward, as it mostly does in life
    slow = (
        "class Slow(nn.Module):\n    def forward(self, x):\n        time.sleep(0.05)\n        return x\n\ndef recipe("
    )
    changed = RECIPE.replace("def recipe(", slow).replace("nn.Sequential(*layers", "nn.Sequential(Slow(), *layers")
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
    assert record(tmp_path)["status"] == "interrupted"
