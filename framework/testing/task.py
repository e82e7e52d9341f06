"""Small training tasks on which plugins are checked."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from framework.data.data import Data

SAMPLES, HELD_OUT, CLASSES = 46, 20, 3


class Dropout(nn.Module):
    """Dropout with rate 0.5 that keeps its last mask, so that a check can see what the network drew."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with half of its entries zeroed and the others doubled."""
        if not self.training:
            return x
        self.mask = torch.rand_like(x) < 0.5
        return torch.where(self.mask, 2 * x, 0.0)


class Recurrent(nn.Module):
    """An LSTM's output at the last position."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, units, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(samples, units)`` for ``(samples, positions, inputs)``."""
        output: Tensor = self.lstm(x)[0]
        return output[:, -1]


def image_network(noisy: bool) -> nn.Sequential:
    """Return a convolutional network for images ``(1, 8, 8)``.

    Args:
        noisy: with BatchNorm and dropout, with which samples of a batch depend on each other.
    """
    layers: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(1, 4, 3, padding=1)),
        ("norm", nn.BatchNorm2d(4) if noisy else nn.Identity()),
        ("relu", nn.ReLU()),
        ("pool", nn.AvgPool2d(2)),
        ("flat", nn.Flatten()),
        ("drop", Dropout() if noisy else nn.Identity()),
        ("hidden", nn.Linear(64, 8)),
        ("rate", nn.Sigmoid()),
        ("head", nn.Linear(8, CLASSES)),
    ]
    return nn.Sequential(OrderedDict(layers))


def token_network(noisy: bool) -> nn.Sequential:
    """Return a recurrent network for sequences of ids below 11; ``noisy`` as in :func:`image_network`."""
    layers: list[tuple[str, nn.Module]] = [
        ("embedding", nn.Embedding(11, 6)),
        ("recurrent", Recurrent(6, 8)),
        ("norm", nn.BatchNorm1d(8) if noisy else nn.Identity()),
        ("drop", Dropout() if noisy else nn.Identity()),
        ("head", nn.Linear(8, CLASSES)),
    ]
    return nn.Sequential(OrderedDict(layers))


def row_network(noisy: bool) -> nn.Sequential:
    """Return a network for rows of 5 numbers; ``noisy`` as in :func:`image_network`."""
    layers: list[tuple[str, nn.Module]] = [
        ("hidden", nn.Linear(5, 8)),
        ("norm", nn.BatchNorm1d(8) if noisy else nn.Identity()),
        ("relu", nn.ReLU()),
        ("drop", Dropout() if noisy else nn.Identity()),
        ("head", nn.Linear(8, CLASSES)),
    ]
    return nn.Sequential(OrderedDict(layers))


def images(generator: torch.Generator) -> Tensor:
    """Return random images ``(samples, 1, 8, 8)`` in [0, 1]."""
    return torch.rand(SAMPLES + HELD_OUT, 1, 8, 8, generator=generator)


def tokens(generator: torch.Generator) -> Tensor:
    """Return random sequences of 5 ids."""
    return torch.randint(11, (SAMPLES + HELD_OUT, 5), generator=generator)


def rows(generator: torch.Generator) -> Tensor:
    """Return random rows of 5 numbers."""
    return torch.randn(SAMPLES + HELD_OUT, 5, generator=generator)


@dataclasses.dataclass(frozen=True)
class Task:
    """A small classification task with random classes.

    Args:
        name: the name in a plugin's examples.
        network: makes the network; its argument says whether with BatchNorm and dropout.
        inputs: draws the inputs of all samples.
        loss: the loss function.
    """

    name: str
    network: Callable[[bool], nn.Module]
    inputs: Callable[[torch.Generator], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy

    def data(self, dtype: torch.dtype, batch_size: int) -> Data:
        """Return training, validation and test parts; the last step and its last micro-batch are short."""
        generator = torch.Generator().manual_seed(0)
        x = self.inputs(generator)
        x = x.to(dtype) if x.is_floating_point() else x
        y = torch.randint(CLASSES, (len(x),), generator=generator)
        held_out = (x[SAMPLES:], y[SAMPLES:])
        return Data((x[:SAMPLES], y[:SAMPLES]), held_out, held_out, batch_size=batch_size)

    def model(self, dtype: torch.dtype, noisy: bool) -> nn.Module:
        """Return the network, the same at every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.network(noisy).to(dtype)


_EVERY = (
    Task("images", image_network, images),
    Task("tokens", token_network, tokens),
    Task("rows", row_network, rows),
)
TASKS = {task.name: task for task in _EVERY}
