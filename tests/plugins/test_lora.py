"""The network begins as it was, only the low-rank change and the head train, and export merges them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, Plugin, Recipe, Run, UserError, export, fit
from plugins.freeze import Freeze
from plugins.lora import LoRA
from plugins.optimizer import Optimizer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 16))
            self.head = nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


def trained(digits: Any, *plugins: Any, epochs: int = 2, **keys: Any) -> Run:
    data = Data(digits, digits, digits, batch_size=32)
    trainer = {"max_epochs": epochs, "enable_progress_bar": False}
    plugins = (*plugins, Optimizer("AdamW", lr=0.01))
    return fit(Recipe(Net(), data, cross_entropy, plugins=list(plugins), trainer=trainer), **{"logs": None, **keys})


def test_it_starts_as_the_network_and_trains_factors_and_head_alone(digits: Any) -> None:
    adapted = LoRA("Linear", rank=2, train="head*").prepare_model(Net())
    assert torch.equal(adapted.eval()(digits[0]), Net().eval()(digits[0]))
    training = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name.split(".default")[0] for name in training if "lora" in name} >= {"body.0.lora_A", "body.3.lora_B"}
    assert not any("base_layer" in name for name in training if name.startswith("body"))
    model = trained(digits, LoRA("body.0,body.3", rank=2, train="head")).core.model
    assert torch.equal(model.body[0].base_layer.weight, Net().body[0].weight)
    assert not torch.equal(model.head.weight, Net().head.weight)


def test_export_merges(digits: Any, tmp_path: Path) -> None:
    run = trained(digits, LoRA("body.0,body.3", rank=2, train="head"), logs=tmp_path)
    export(run, out=tmp_path / "net.safetensors")
    plain = Net().eval()
    plain.load_state_dict(load_file(tmp_path / "net.safetensors"))
    expected = run.core.model.eval()(digits[0])
    torch.testing.assert_close(plain(digits[0]), expected, atol=1e-5, rtol=0)
    layer = run.core.model.body[0]
    by_hand = layer.base_layer.weight + 16 / 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(plain.body[0].weight, by_hand)
    apart = trained(digits, LoRA("body.0", rank=2, train="head", merge=False))
    export(apart, out=tmp_path / "apart.safetensors")
    assert "body.0.lora_A.default.weight" in load_file(tmp_path / "apart.safetensors")


def test_it_starts_from_weights_of_the_plain_network_and_hands_them_back(digits: Any, tmp_path: Path) -> None:
    plain = trained(digits, logs=tmp_path)
    lora = LoRA("body.0,body.3", rank=2, train="head")
    run = trained(digits, lora, weights=plain.best, logs=tmp_path)
    assert torch.equal(run.core.model.body[0].base_layer.weight, plain.core.model.body[0].weight)
    again = trained(digits, LoRA("body.0,body.3", rank=2, train="head"), weights=run.best, epochs=1)
    assert torch.equal(again.core.model.body[0].base_layer.weight, plain.core.model.body[0].weight)
    with pytest.raises(UserError, match=r"of another network: .* give the file that export writes: FILE.safetensors"):
        trained(digits, weights=run.best)
    out = tmp_path / "net.safetensors"
    export(run, out=out)
    merged = trained(digits, weights=out, epochs=1)
    assert merged.metrics["val/loss"] < plain.metrics["val/loss"]
    out.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"weights='.*net.safetensors': cannot be read: "):
        trained(digits, weights=out)


def test_the_factors_depend_on_the_seed_and_not_on_draws_of_others(digits: Any) -> None:
    def factor(seed: int, *others: Any) -> Any:
        torch.manual_seed(len(others))
        lora = LoRA("body.0,body.3", rank=2, train="head")
        recipe = Recipe(Net(), Data(digits, digits, batch_size=32), cross_entropy, plugins=[*others, lora])
        return recipe.make_core(seed, {}).model.body[0].lora_A["default"].weight

    class Draws(Plugin):
        def prepare_model(self, model: nn.Module) -> nn.Module:
            torch.rand(3)
            return model

    assert torch.equal(factor(0), factor(0, Draws()))
    assert not torch.equal(factor(0), factor(1))


def test_it_resumes(digits: Any, tmp_path: Path) -> None:
    def lora() -> LoRA:
        return LoRA("body.0", rank=2, dropout=0.1, train="head")

    whole = trained(digits, lora())
    first = trained(digits, lora(), epochs=1, logs=tmp_path)
    again = trained(digits, lora(), logs=tmp_path, resume=first.folder)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.core.model.parameters(), again.core.model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("plugins", "words"),
    [
        ([LoRA("bodi.*")], "pattern 'bodi.\\*' matches no layer"),
        ([LoRA("Tanh")], r"LoRA\(layers='Tanh'\): "),
        ([LoRA("body.0", train="hed")], "pattern 'hed' matches no parameter"),
        ([LoRA("body.0"), Freeze("head")], "conflicts with 'freeze'"),
    ],
)
def test_what_cannot_be_adapted(digits: Any, plugins: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        trained(digits, *plugins)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs the package peft; install the extra lora"):
        LoRA("body.0").prepare_model(Net())


def test_tied_weights_are_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    with pytest.raises(UserError, match=r"0.weight and 1.weight are one tied parameter"):
        LoRA("1").prepare_model(net)
