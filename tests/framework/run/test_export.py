"""A trained network in a file that needs nothing of this package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import framework
from framework import Recipe, Run, export, fit
from framework.cli import main as cli
from framework.data import Data
from framework.data.outcome import Outcome
from framework.engine.core import Core
from framework.errors import UserError
from framework.plugin import Plugin
from plugins.weight_average import WeightAverage

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def network() -> Callable[[], nn.Sequential]:
    """Return a function that makes a network with running statistics and dropout."""

    def make() -> nn.Sequential:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 12), nn.Linear(12, 10)
        )

    return make


def trained(recipe: MakeRecipe, network: Any, logs: Path, *plugins: Plugin, **changes: Any) -> tuple[Recipe, Run]:
    def made() -> Recipe:
        given = recipe(plugins=list(plugins), trainer={"max_epochs": 2}, **changes)
        given.model = network()
        return given

    return made, fit(made, logs=logs)


def state_in(checkpoint: Path) -> dict[str, Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ckpt", ["best", "last", "path"])
def test_weights_have_the_names_of_the_plain_network(
    recipe: MakeRecipe, network: Any, tmp_path: Path, ckpt: str
) -> None:
    made, run = trained(recipe, network, tmp_path)
    chosen = {"best": run.best, "last": run.last_checkpoint, "path": run.last_checkpoint}[ckpt]
    facts = export(made, tmp_path / "net.safetensors", ckpt=chosen if ckpt == "path" else ckpt, logs=tmp_path)
    assert same(load_file(tmp_path / "net.safetensors"), state_in(chosen))
    network().load_state_dict(load_file(tmp_path / "net.safetensors"))
    kept = torch.load(chosen, weights_only=True)
    with safetensors.safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata() == facts
    assert facts == {
        "format": "pt",
        "jtilde": framework.__version__,
        "recipe": "made",
        "epoch": str(kept["epoch"]),
        "step": str(kept["global_step"]),
        "weights": "raw",
    }


def test_the_average_unless_the_raw_weights_are_asked_for(recipe: MakeRecipe, network: Any, tmp_path: Path) -> None:
    made, run = trained(recipe, network, tmp_path, WeightAverage(decay=0.5))
    out = tmp_path / "net.safetensors"
    assert export(made, out, ckpt="last", raw=True, logs=tmp_path)["weights"] == "raw"
    raw = load_file(out)
    assert same(raw, state_in(run.last_checkpoint))
    assert export(made, out, ckpt="last", logs=tmp_path)["weights"] == "evaluation"
    average = load_file(out)
    states = torch.load(run.last_checkpoint, weights_only=True)["callbacks"]
    (kept,) = [one["weight_average"]["averages"] for one in states.values() if "weight_average" in one]
    assert all(torch.equal(average[name], value) for name, value in kept.items())
    assert not torch.equal(average["0.weight"], raw["0.weight"])
    assert not torch.equal(average["1.running_mean"], raw["1.running_mean"]), "statistics are those of the average"


def test_a_run_is_written_as_it_was_handed_back(recipe: MakeRecipe, network: Any, tmp_path: Path) -> None:
    _, run = trained(recipe, network, tmp_path)
    facts = export(run, tmp_path / "net.safetensors")
    assert same(load_file(tmp_path / "net.safetensors"), run.core.model.state_dict())
    assert (facts["epoch"], facts["step"]) == ("2", "14")
    with pytest.raises(UserError, match=r"export\(run\): a Run takes no further arguments but out and raw"):
        export(run, tmp_path / "net.safetensors", ckpt="best")


def test_tied_weights_stand_under_each_name(recipe: MakeRecipe, tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 10))
        model[2].weight = model[1].weight
        return model

    made, run = trained(recipe, tied, tmp_path)
    export(made, tmp_path / "net.safetensors", logs=tmp_path)
    model = tied()
    model.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert model[2].weight is model[1].weight
    assert same(dict(model.state_dict()), state_in(run.best))


def test_a_state_that_is_no_tensor_is_refused(recipe: MakeRecipe, tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"calls": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    made, _ = trained(recipe, lambda: nn.Sequential(Odd(64, 10)), tmp_path)
    with pytest.raises(
        UserError, match=r"'0\._extra_state' of the network's state is a dict, which safetensors cannot"
    ):
        export(made, tmp_path / "net.safetensors", logs=tmp_path)
    assert not (tmp_path / "net.safetensors").exists()


# ---- torch.export ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_the_network_gives_equal_outputs_for_any_number_of_samples(
    recipe: MakeRecipe, network: Any, data: Data, tmp_path: Path, count: int
) -> None:
    made, _ = trained(recipe, network, tmp_path, WeightAverage(decay=0.5))
    export(made, tmp_path / "net.pt2", ckpt="last", logs=tmp_path)
    export(made, tmp_path / "net.safetensors", ckpt="last", logs=tmp_path)
    program = torch.export.load(tmp_path / "net.pt2").module()
    model = network().eval()
    model.load_state_dict(load_file(tmp_path / "net.safetensors"))
    x = data.train[0][:count]
    assert torch.equal(program(x), model(x))


def test_inputs_of_several_tensors(recipe: MakeRecipe, tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 10), nn.Linear(4, 10)

        def forward(self, x: Any) -> Tensor:
            return self.a(x["a"]) + self.b(x["b"]) * x["scale"]

    class Named(Core):
        def compute_loss(self, batch: Any) -> Outcome:
            prediction = self(batch["input"])
            return Outcome(cross_entropy(prediction, batch["target"]), prediction, batch["target"])

        def count(self, batch: Any) -> int:
            return len(batch["target"])

    def collate(samples: list[Any]) -> Any:
        a, b, y = (torch.stack(part) for part in zip(*samples, strict=True))
        return {"input": {"a": a, "b": b, "scale": torch.tensor(2.0)}, "target": y}

    part = torch.randn(20, 3), torch.randn(20, 4), torch.randint(10, (20,))
    data = Data(part, part, batch_size=5, collate=collate)
    _, run = trained(recipe, Two, tmp_path, data=data, core=Named, metrics={})
    export(run, tmp_path / "net.pt2")
    x = collate(list(zip(*part, strict=True)))["input"]
    assert torch.equal(torch.export.load(tmp_path / "net.pt2").module()(x), run.core.model(x))


def test_what_cannot_be_traced_is_reported(recipe: MakeRecipe, tmp_path: Path) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x if x.sum().item() > 0 else -x)

    made, _ = trained(recipe, Looks, tmp_path)
    with pytest.raises(UserError, match=r"torch.export cannot trace Looks for any number of samples .*safetensors$"):
        export(made, tmp_path / "net.pt2", logs=tmp_path)
    assert not [file for file in tmp_path.iterdir() if file.is_file()], "nothing half-written stays"


# ---- mistakes, the command line --------------------------------------------------------------------------------------


def test_mistakes_are_reported_before_anything_is_loaded(recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out='net.onnx': must end with .safetensors for weights, .pt2"):
        export(recipe, "net.onnx", logs=tmp_path)
    with pytest.raises(UserError, match="no run of 'digits_mlp'"):
        export(recipe, "net.pt2", logs=tmp_path)


def test_a_file_that_cannot_be_written_is_reported_and_the_one_before_stays(
    recipe: MakeRecipe, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = trained(recipe, network, tmp_path)
    out = tmp_path / "net.safetensors"
    export(made, out, logs=tmp_path)
    before = out.read_bytes()

    def full(*args: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match=r"--out .*net.safetensors: cannot be written \(No space left on device\)"):
        export(made, out, ckpt="last", logs=tmp_path)
    assert out.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["net.safetensors"]


RECIPE = """
import torch
from torch import nn
from framework import Data, Recipe
from plugins.weight_average import WeightAverage

def recipe(width: int = 4) -> Recipe:
    x, y = torch.randn(24, 3), torch.randn(24, 1)
    return Recipe(
        nn.Sequential(nn.Linear(3, width), nn.Linear(width, 1)), Data((x, y), batch_size=4), nn.functional.mse_loss,
        plugins=[WeightAverage(decay=0.5)], trainer={"max_epochs": 1, "accelerator": "cpu"},
    )
"""

# no line of this package, nor of Lightning, can be imported here
PLAIN = """
import sys
for name in ("framework", "plugins", "recipes", "pytorch_lightning", "lightning_fabric", "torchmetrics"):
    sys.modules[name] = None
import torch
from torch import nn
model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
"""


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], Path]:
    """Return flags that name a recipe with a run, and the run's folder."""
    (tmp_path / "averaged.py").write_text(RECIPE)
    flags = [str(tmp_path / "averaged.py"), "--logs", str(tmp_path / "logs")]
    assert cli.main(["fit", *flags, "--width", "5"]) == 0
    capsys.readouterr()
    return flags, tmp_path / "logs" / "averaged" / "version_0"


def in_a_process_without_us(code: str, *arguments: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN + code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line(made: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, folder = made
    out = tmp_path / "out" / "net.safetensors"
    assert cli.main(["export", *flags, "--ckpt", "last", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"evaluation weights of averaged, epoch 0, step 6, in {out}\n"
    average = load_file(out)
    assert cli.main(["export", *flags, "--ckpt", "last", "--run", str(folder), "--raw", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("raw weights of averaged, ")
    assert not torch.equal(load_file(out)["0.weight"], average["0.weight"])
    for wrong, words in (
        (["--ckpt", "last"], "export needs --out FILE.safetensors"),
        (["--out", "net.bin"], "out='net.bin': must end with .safetensors"),
        (["--out", str(out), "--ckpt", "first"], "ckpt='first': no such checkpoint"),
        (["--out", "/dev/null/net.pt2", "--ckpt", "last"], "--out /dev/null/net.pt2: cannot be written"),
    ):
        assert cli.main(["export", *flags, *wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {words}") and error.count("\n") == 1


def test_the_weights_load_without_this_package(made: tuple[list[str], Path], tmp_path: Path) -> None:
    flags, folder = made
    assert cli.main(["export", *flags, "--ckpt", "last", "--raw", "--out", str(tmp_path / "net.safetensors")]) == 0
    assert cli.main(["export", *flags, "--ckpt", "last", "--raw", "--out", str(tmp_path / "net.pt2")]) == 0
    readme = (Path(framework.__file__).parents[1] / "README.md").read_text()
    (line,) = (line for line in readme.splitlines() if "torch.load(" in line)
    code = f"""
import os
os.chdir({str(folder / "checkpoints")!r})
{line.replace("best.ckpt", "last.ckpt")}
x = torch.randn(9, 3)
y = model(x)
import safetensors.torch
model.load_state_dict(safetensors.torch.load_file(sys.argv[1]))
assert torch.equal(model(x), y)
torch.testing.assert_close(torch.export.load(sys.argv[2]).module()(x), y)
print(sorted(name for name in sys.modules if name.startswith(("framework", "plugins", "pytorch_lightning"))))
print(y.shape, model[0].weight.sum().item())
"""
    told = in_a_process_without_us(code, tmp_path / "net.safetensors", tmp_path / "net.pt2").splitlines()
    assert told[0] == str(["framework", "plugins", "pytorch_lightning"]), "the blocked names alone"
    expected = state_in(folder / "checkpoints" / "last.ckpt")["0.weight"].sum().item()
    assert told[1] == f"torch.Size([9, 1]) {expected}"
