"""Blocks by depth of networks as they are commonly written."""

from __future__ import annotations

from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from framework.ops.depth import blocks_of


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.skip = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


def test_a_residual_network() -> None:
    net = nn.Module()
    net.stem, net.norm = nn.Conv2d(3, 3, 7), nn.BatchNorm2d(3)
    net.layer1, net.layer2 = nn.Sequential(Residual(), Residual()), nn.Sequential(Residual(), nn.ReLU(), Residual())
    net.head = nn.Linear(3, 2)
    starts = [block[0] for block in blocks_of(net)]
    assert starts == [
        "stem.weight",
        "layer1.0.conv.weight",
        "layer1.1.conv.weight",
        "layer2.0.conv.weight",
        "layer2.2.conv.weight",
        "head.weight",
    ]
    assert blocks_of(net)[0] == ["stem.weight", "stem.bias", "norm.weight", "norm.bias"]
    assert sorted(name for block in blocks_of(net) for name in block) == sorted(
        name for name, _ in net.named_parameters()
    )


def test_a_transformer() -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    starts = [block[0].split(".weight")[0] for block in blocks_of(BertForSequenceClassification(config))]
    assert starts[0] == "bert.embeddings.word_embeddings" and starts[-1] == "classifier" and len(starts) == 6


def test_parameters_of_the_network_itself_and_tied_ones() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
    net[2].weight = net[0].weight
    net.register_parameter("scale", nn.Parameter(net[1].bias.detach().clone()))
    assert blocks_of(net) == [["scale", "0.weight"], ["1.weight", "1.bias"]] or blocks_of(net)[0][0] == "scale"
    assert sum(map(len, blocks_of(net))) == len(list(net.parameters()))
