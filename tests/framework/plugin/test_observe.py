"""Observers of layers: order, kinds of output, and training steps only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from framework.data import Data
from framework.engine.core import Core
from framework.errors import UserError
from framework.plugin import Plugin

CoreOf = Callable[..., Core]
Train = Callable[..., pl.Trainer]
Weights = Callable[[Core], Tensor]


class Affine(Plugin):
    scale: float = 1.0
    shift: float = 0.0
    layers: str = "1"

    def attach(self, core: Core) -> None:
        self.layers_ = core.observe(self, self.layers)
        self.seen_: list[tuple[str, tuple[int, ...]]] = []

    def transform_activation(self, x: Tensor, layer: str, step: Any) -> Tensor:
        self.seen_.append((layer, tuple(x.shape)))
        return x * self.scale + self.shift


def live(core: Core) -> Core:
    core.attach_plugins()
    core.observers.live = True
    return core


def test_plugins_fold_in_recipe_order(core_of: CoreOf) -> None:
    core = live(
        core_of(Affine(2.0, name="a"), Affine(shift=1.0, name="b"), model=nn.Sequential(nn.Identity(), nn.ReLU()))
    )
    assert core(torch.tensor([[3.0]])).item() == 7.0


def test_only_in_training_steps(core_of: CoreOf, train: Train) -> None:
    plugin = Affine(layers="Linear")
    core = core_of(plugin, accumulate=2)
    trainer = train(core, max_steps=2, val_check_interval=1)
    assert plugin.seen_ == [("0", (16, 12)), ("2", (16, 10))] * 4
    trainer.validate(core, verbose=False)
    core(torch.zeros(1, 64))
    assert len(plugin.seen_) == 8


def test_a_layer_matched_by_two_patterns_or_asked_for_twice_is_seen_once(core_of: CoreOf) -> None:
    class Twice(Affine):
        def attach(self, core: Core) -> None:
            super().attach(core)
            core.observe(self, "Linear")

    plugin = Twice(layers="0, Linear")
    live(core_of(plugin))(torch.zeros(2, 64))
    assert [layer for layer, _ in plugin.seen_] == ["0", "2"]


class Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x, "state"


class Packed(nn.Module):
    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, x: Tensor) -> Any:
        packed = pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
        return (packed, "state") if self.wrapped else packed


def test_the_first_of_a_tuple_and_the_data_of_packed_sequences(core_of: CoreOf) -> None:
    x = torch.ones(2, 3, 4)
    out = live(core_of(Affine(2.0, layers="Tuple"), model=nn.Sequential(Tuple())))(x)
    assert torch.equal(out[0], 2 * x)
    assert out[1] == "state"
    for wrapped in (False, True):
        out = live(core_of(Affine(2.0, layers="Packed"), model=nn.Sequential(Packed(wrapped))))(x)
        packed = out[0] if wrapped else out
        assert isinstance(packed, PackedSequence)
        assert torch.equal(packed.data, torch.full((5, 4), 2.0))
        assert packed.batch_sizes.tolist() == [2, 2, 1]


def test_a_recurrent_layer(core_of: CoreOf) -> None:
    lstm = nn.LSTM(4, 3, batch_first=True)
    core = live(core_of(Affine(0.0, 5.0, layers="LSTM"), model=nn.Sequential(lstm)))
    out, (hidden, _) = core(torch.zeros(2, 3, 4))
    assert out.unique().item() == 5.0
    assert hidden.shape == (1, 2, 3)


def test_a_layer_whose_output_holds_no_tensor_is_reported(core_of: CoreOf) -> None:
    class Mapping(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"x": x}

    core = live(core_of(Affine(layers="Mapping"), model=nn.Sequential(Mapping())))
    with pytest.raises(UserError, match="layer '0' returns a dict"):
        core(torch.zeros(1))


def test_a_pattern_that_matches_nothing_is_reported_with_the_plugin(core_of: CoreOf) -> None:
    with pytest.raises(UserError, match=r"Affine\(layers='RelU'\): pattern 'RelU' matches no layer of Sequential"):
        core_of(Affine(layers="RelU")).attach_plugins()


def test_observers_fire_under_compile_and_change_the_same(
    core_of: CoreOf, train: Train, weights: Weights, data: Data
) -> None:
    graphs: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(module.code)
        return module.forward

    class Scale(Plugin):
        def attach(self, core: Core) -> None:
            core.observe(self, "1")

        def transform_activation(self, x: Tensor, layer: str, step: Any) -> Tensor:
            self.last_ = x.detach()
            return x * 1.25

    def trained(**options: Any) -> tuple[Tensor, Tensor]:
        plugin = Scale()
        core = core_of(plugin, data=Data((data.train[0][:96], data.train[1][:96]), data.val, batch_size=32), **options)
        train(core, max_epochs=2)
        return weights(core), plugin.last_

    torch.compiler.reset()
    plain, compiled = trained(), trained(compile={"backend": backend})
    assert sum("1.25" in code for code in graphs) == 1, "in the graph of training, not in that of validation"
    assert len(graphs) >= 2
    torch.testing.assert_close(compiled, plain)


def test_a_compiled_network_keeps_its_names(core_of: CoreOf, train: Train) -> None:
    core = core_of(compile={"backend": "eager"})
    assert set(core.state_dict()) == {"model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias"}


def test_the_network_can_be_copied_and_pickled_after_training(core_of: CoreOf, train: Train, tmp_path: Any) -> None:
    core = core_of(Affine(2.0))
    train(core, max_steps=1)
    x = torch.rand(3, 64)
    core.model.eval()
    assert torch.equal(copy.deepcopy(core.model)(x), core.model(x))
    torch.save(core.model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(x), core.model(x))
