"""Residual branches are found where a network adds them, and nothing about the network changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from framework.ops.residual import branches, erasing


class Basic(nn.Module):
    """A ResNet's block, in place and with a map on the way around if asked."""

    def __init__(self, around: bool = False) -> None:
        super().__init__()
        self.conv, self.bn1 = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.last, self.bn2 = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.down = nn.Conv2d(2, 2, 1) if around else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.last(torch.relu(self.bn1(self.conv(x)))))
        h += x if self.down is None else self.down(x)
        return torch.relu(h)


class Block(nn.Module):
    """A transformer's block, with dropout and a gain on its branches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(4), nn.Linear(4, 4)
        self.mix = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.add(torch.dropout(self.attention(self.norm(x)), 0.1, True), x)
        return x + self.gain * self.mix(self.norm(x))


class Untraced(nn.Module):
    """A network whose forward depends on its input, and keeps what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp, self.seen = nn.Linear(4, 4), nn.Linear(4, 4), []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        torch.rand(1)
        return x + self.attn(x) if x.sum() > 0 else x + self.mlp(x)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(Basic(), Basic(True)), ["*.bn2"]),
        (nn.Sequential(Block(), Block()), ["*.attention", "*.mix"]),
        (nn.TransformerEncoderLayer(8, 2), ["dropout1", "dropout2"]),
        (nn.ModuleDict({"a": nn.TransformerDecoderLayer(8, 2)}), ["a.dropout1", "a.dropout2", "a.dropout3"]),
        (nn.Sequential(Untraced(), Untraced()), ["*.attn", "*.mlp"]),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), []),
    ],
    ids=["resnet", "transformer", "torch's", "decoder", "untraced", "none"],
)
def test_branches_are_found(model: nn.Module, expected: list[str]) -> None:
    assert branches(model) == expected


def test_what_nothing_goes_around_is_found() -> None:
    resnet = nn.Sequential(nn.Conv2d(2, 2, 1), Basic(), Basic())
    assert erasing(resnet, ["1.bn2", "2.bn2", "2.conv"]) == []
    assert erasing(resnet, ["0", "1", "2"]) == ["0", "1", "2"]
    assert erasing(nn.Sequential(Block(), Block()), ["0.mix.2", "1.norm", "1.mix", "1"]) == ["1"]
    assert erasing(nn.Sequential(Untraced()), ["0"]) == ["0"]  # its forward is not looked into
    assert erasing(Untraced(), ["attn"]) == []  # nobody knows


@pytest.mark.parametrize(
    "join", [lambda x, h: torch.addcmul(x, h, h), lambda x, h: torch.cat([h, x], 1), lambda x, h: x - h]
)
def test_other_ways_around_count(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(join(x, self.body(x)))

    assert erasing(Joined(), ["body", "head"]) == ["head"]


def test_a_network_that_is_looked_at_does_not_change() -> None:
    model = Untraced().eval()
    state = torch.get_rng_state()
    assert branches(model) == ["attn", "mlp"]
    assert model.seen == [] and not model.training and not model.attn._forward_hooks
    assert torch.equal(torch.get_rng_state(), state)
