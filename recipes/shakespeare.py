"""Tiny Shakespeare: a character-level LSTM that generates a sample text after training."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework import Core, Data, Recipe
from framework.data.fetch import DataFile, fetch, read_bytes
from plugins.hidden_noise import HiddenNoise
from plugins.optimizer import Optimizer
from plugins.schedule import Schedule
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise

FILE = DataFile(
    "text/tinyshakespeare/input.txt",
    "https://github.com/karpathy/char-rnn/raw/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


def read_shakespeare(data: Path | None, length: int) -> tuple[list[tuple[Tensor, Tensor]], str]:
    """Return pairs of texts and the same texts shifted by one character, ``(texts, length)``, and the alphabet.

    The first 90 % of the text are the training part, the next 5 % the validation part, the last 5 % the test part. The
    latter two are cut into texts of 512 characters, so that the metric does not depend on ``length``.
    """
    (path,) = fetch([FILE], data)
    codes, alphabet = read_codes(path)
    cuts = [0, int(0.9 * len(codes)), int(0.95 * len(codes)), len(codes)]
    parts = []
    for low, high, size in zip(cuts, cuts[1:], (length, 512, 512), strict=False):
        count = (high - low - 1) // size
        parts.append(tuple(codes[a : a + count * size].view(count, size) for a in (low, low + 1)))
    return parts, alphabet


@functools.cache  # a process that trains many times reads its data once
def read_codes(path: Path) -> tuple[Tensor, str]:
    """Return each character of a text as its place in the alphabet, and the alphabet."""
    text = read_bytes(path).decode()
    alphabet = "".join(sorted(set(text)))
    place = {character: index for index, character in enumerate(alphabet)}
    return torch.tensor([place[character] for character in text]), alphabet


class NextCharacter(nn.Module):
    """Logits of the next character given those before it."""

    def __init__(self, alphabet: str, width: int) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.embedding = nn.Embedding(len(alphabet), 64)
        self.lstm = nn.LSTM(64, width, batch_first=True)
        self.head = nn.Linear(width, len(alphabet))

    def forward(self, text: Tensor) -> Tensor:
        """Return ``(texts, length, characters)``."""
        return self.head(self.lstm(self.embedding(text))[0])

    @torch.no_grad()
    def write(self, count: int, temperature: float = 0.7) -> str:
        """Return a text of ``count`` characters, sampled from the network's distribution at a temperature."""
        device = self.head.weight.device
        code, state, written = torch.tensor([[self.alphabet.index("\n")]], device=device), None, []
        for _ in range(count):
            output, state = self.lstm(self.embedding(code), state)
            code = torch.multinomial(F.softmax(self.head(output[0]) / temperature, dim=-1), 1)
            written.append(self.alphabet[int(code)])
        return "".join(written)


class Sample(pl.Callback):
    """Print a generated text after training and after a test; recipes take Lightning callbacks beside plugins.

    Args:
        count: number of characters.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print a sample generated with the evaluation weights."""
        if trainer.is_global_zero and self.count and isinstance(pl_module, Core):
            with pl_module.evaluation():
                print(f"\n{pl_module.model.write(self.count)}\n")

    on_test_end = on_fit_end


def bits(logits: Tensor, text: Tensor) -> Tensor:
    r"""Return the cross-entropy in bits per character: :math:`-\frac1N \sum_n \log_2 p(x_n \mid x_{<n})`."""
    return F.cross_entropy(logits.flatten(0, 1), text.flatten()) / math.log(2)


def recipe(
    data: Path | None = None,
    epochs: int = 24,
    batch_size: int = 32,
    length: int = 128,
    width: int = 256,
    lr: float = 4e-3,
    weight_noise: float = 0.02,
    dropout: float = 0.1,
    decay: float = 0.998,
    sample: int = 500,
) -> Recipe:
    """Model tiny Shakespeare; the loss is in bits per character.

    Args:
        data: data folder, by default FRAMEWORK_DATA or a cache folder.
        epochs: passes over the training part.
        batch_size: texts per optimizer step.
        length: characters of a training text.
        width: units of the LSTM.
        lr: highest learning rate of the one-cycle schedule.
        weight_noise: standard deviation of the noise on the LSTM's weights.
        dropout: share of the LSTM's outputs that are masked.
        decay: decay of the moving average of weights that is evaluated.
        sample: characters to generate at the end.
    """
    (train, val, test), alphabet = read_shakespeare(data, length)
    return Recipe(
        model=NextCharacter(alphabet, width),
        data=Data(train, val, test, batch_size=batch_size, eval_batch_size=64),
        loss=bits,
        plugins=[
            WeightNoise(weight_noise, weights="lstm"),
            HiddenNoise("lstm", kind="masking", rate=dropout),
            WeightAverage(decay=decay),
            Optimizer("AdamW", lr=lr, clip_norm=1.0),
            Schedule("one_cycle", warmup=0.1),
            Sample(sample),
        ],
        trainer={"max_epochs": epochs},
    )
