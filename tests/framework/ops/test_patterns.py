"""Patterns over layers and weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from framework.errors import UserError
from framework.ops.patterns import as_patterns, is_norm, select_layers, select_weights


class Net(nn.Module):
    """An encoder, a recurrent layer, and a decoder tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4))
        self.lstm = nn.LSTM(4, 4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(4))
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


WEIGHTS = ["embed.weight", "encoder.0.weight", "encoder.3.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("encoder.0", ["encoder.0"]),
        ("ReLU", ["encoder.2"]),
        ("Linear", ["encoder.0", "encoder.3", "head", "frozen"]),
        ("head, encoder.[03]", ["encoder.0", "encoder.3", "head"]),
        (["lstm", "L*m"], ["encoder.1", "lstm"]),
    ],
)
def test_layers_by_name_or_class_in_the_models_order(patterns: str | list[str], expected: list[str]) -> None:
    net = Net()
    found = select_layers(net, patterns, who="me")
    assert list(found) == expected
    assert all(net.get_submodule(name) is layer for name, layer in found.items())


def test_all_layers_but_not_the_network_itself() -> None:
    assert "" not in select_layers(Net(), "*", who="me")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("*", WEIGHTS),
        ("encoder.*", WEIGHTS[1:3]),
        ("encoder.0", WEIGHTS[1:2]),
        ("Linear", WEIGHTS[:3]),
        ("LSTM", WEIGHTS[3:]),
        ("*.weight_hh_*", WEIGHTS[4:]),
        ("embed, lstm", [WEIGHTS[0], *WEIGHTS[3:]]),
    ],
)
def test_weights_by_name_layer_or_class(patterns: str, expected: list[str]) -> None:
    """Tied weights once, frozen ones, biases and norm gains not."""
    net = Net()
    found = select_weights(net, patterns, who="me")
    assert list(found) == expected
    assert all(net.get_parameter(name) is weight for name, weight in found.items())


def test_biases_and_gains_on_request() -> None:
    found = select_weights(Net(), "*", who="me", biases=True)
    assert {"scale", "encoder.1.weight", "encoder.0.bias", "lstm.bias_ih_l0", "head.bias"} < set(found)
    assert not any("frozen" in name or name == "head.weight" for name in found)


def test_a_tied_weight_is_found_by_either_of_its_names() -> None:
    assert list(select_weights(Net(), "head", who="me")) == ["embed.weight"]
    assert list(select_weights(Net(), "Embedding, head.weight", who="me")) == ["embed.weight"]


def test_a_shared_layer_and_its_weights_are_found_by_each_name() -> None:
    act, linear = nn.ReLU(), nn.Linear(2, 2)
    block = nn.Sequential(linear, act)
    net = nn.ModuleDict({"a": block, "b": nn.Sequential(nn.Linear(2, 2), act), "c": block})
    assert select_layers(net, "b.1", who="me") == {"a.1": act}
    assert list(select_layers(net, "c.*", who="me")) == ["a.0", "a.1"]
    assert list(select_layers(net, "c", who="me")) == ["a"]
    assert select_weights(net, "c.0.weight", who="me") == {"a.0.weight": linear.weight}
    assert list(select_weights(net, "c.0", who="me", biases=True)) == ["a.0.weight", "a.0.bias"]
    with pytest.raises(UserError, match=r"did you mean 'b\.1'"):
        select_layers(net, "b.11", who="me")


@pytest.mark.parametrize("dim", [0, 1, None])
def test_lengths_of_weight_norm_are_gains_in_both_of_torchs_forms(dim: int | None) -> None:
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 2), dim=dim))
    assert list(select_weights(new, who="me")) == ["0.parametrizations.weight.original1"]
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.Sequential(nn.utils.weight_norm(nn.Conv1d(3, 4, 2), dim=dim))
    assert list(select_weights(old, who="me")) == ["0.weight_v"]
    lstm = nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0", dim=dim)
    found = list(select_weights(lstm, who="me"))
    assert found == ["weight_ih_l0", "parametrizations.weight_hh_l0.original1"]
    spectral = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)))
    assert list(select_weights(spectral, who="me")) == ["0.parametrizations.weight.original"]


def test_frozen_weights_on_request() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    assert list(select_weights(net, who="me", frozen=True)) == ["0.weight", "1.weight"]
    with pytest.raises(UserError, match="matches no weight"):
        select_weights(net, "0", who="me", frozen=True)


def test_patterns_that_match_nothing_are_reported() -> None:
    with pytest.raises(UserError, match=r"me: pattern 'RelU' matches no layer of Net; did you mean 'ReLU'\?"):
        select_layers(Net(), "head, RelU", who="me")
    with pytest.raises(
        UserError, match=r"pattern 'encodr.0.weight' matches no weight of Net; did you mean 'encoder.0.w"
    ):
        select_weights(Net(), "encodr.0.weight", who="me")
    with pytest.raises(UserError, match="frozen"):
        select_weights(Net(), "frozen", who="me")


@pytest.mark.parametrize("empty", ["", " , ", []])
def test_no_pattern_at_all_is_an_error(empty: str | list[str]) -> None:
    with pytest.raises(UserError, match="me: no pattern"):
        select_layers(Net(), empty, who="me")
    with pytest.raises(UserError, match="me: no pattern"):
        select_weights(Net(), empty, who="me")


def test_small_helpers() -> None:
    assert as_patterns("a, b,,c ") == ("a", "b", "c")
    assert as_patterns(["a,b"]) == ("a,b",)
    assert is_norm(nn.RMSNorm(3))
    assert is_norm(nn.BatchNorm2d(3))
    assert not is_norm(nn.Linear(1, 1))
