"""Scikit-learn's handwritten digits of 8 x 8 pixels: a small multilayer perceptron with several plugins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from framework import Data, Recipe
from framework.data.split import parts
from framework.ops.draws import Draws
from plugins.augmentation import Augmentation
from plugins.early_stopping import EarlyStopping
from plugins.hidden_noise import HiddenNoise
from plugins.mixup import Mixup
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.schedule import Schedule


def read_digits(split: int = 0, fold: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Return images ``(samples, 1, 8, 8)`` in [0, 1] and classes: 60 % to train, 20 % to validate, 20 % to test.

    With a fold, that fifth of the first two parts validates.
    """
    images, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(classes)
    # not by the run's seed: runs with different seeds are compared on the same test part
    return [(x[part], y[part]) for part in parts(len(y), fold=fold, stratify=classes, seed=split)]


def jitter(x: Tensor, draws: Draws) -> Tensor:
    """Rotate images by up to 15 degrees, scale them by up to 15 % and shift them by up to 3/4 of a pixel."""
    turn, scale, right, down = (draws.uniform(x, 4) * 2 - 1).unbind(dim=1)
    turn, scale, reach = 0.26 * turn, 1 + 0.15 * scale, 0.75 * 2 / x.shape[-1]  # grid_sample's image has a side of 2
    cos, sin = scale * torch.cos(turn), scale * torch.sin(turn)
    rows = [cos, -sin, reach * right, sin, cos, reach * down]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def recipe(
    epochs: int = 200,
    batch_size: int = 128,
    width: int = 128,
    lr: float = 1e-2,
    alpha: float = 1e-5,
    dropout: float = 0.2,
    mixup: float = 0.2,
    split: int = 0,
    fold: int | None = None,
) -> Recipe:
    """Classify scikit-learn's handwritten digits.

    Args:
        epochs: passes over the training part.
        batch_size: samples per optimizer step.
        width: units of each of the two hidden layers.
        lr: highest learning rate of the one-cycle schedule.
        alpha: strength of the L2 penalty on weights.
        dropout: share of hidden units that are masked.
        mixup: alpha of mixup, which mixes pairs of samples, see plugins/mixup.py.
        split: number of the random division into parts.
        fold: which of five folds validates, instead of a fixed part.
    """
    train, val, test = read_digits(split, fold)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    return Recipe(
        model=model,
        data=Data(train, val, test, batch_size=batch_size, eval_batch_size=512),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": MulticlassAccuracy(10, average="micro")},
        plugins=[
            Augmentation(batch=[jitter]),
            Mixup(mixup),
            HiddenNoise("ReLU", kind="masking", rate=dropout),
            NormPenalty(alpha),
            Optimizer("AdamW", lr=lr),
            Schedule("one_cycle"),
            EarlyStopping("val/loss", patience=epochs),
        ],
        trainer={"max_epochs": epochs},
    )
