"""Fashion-MNIST: a small convolutional network on images augmented by albumentations in the loader's workers."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from framework import Data, Recipe
from framework.data.fetch import DataFile, fetch, read_bytes
from plugins.augmentation import Augmentation
from plugins.hidden_noise import HiddenNoise
from plugins.optimizer import Optimizer
from plugins.schedule import Schedule

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import opens a network connection
import albumentations as A

SOURCE = "https://github.com/zalandoresearch/fashion-mnist/raw/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion"
FILES = [
    DataFile(f"fashion-mnist/{name}-ubyte.gz", f"{SOURCE}/{name}-ubyte.gz", sha256)
    for name, sha256 in (
        ("train-images-idx3", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    )
]


@functools.cache  # a process that trains many times reads its data once
def read_idx(path: Path) -> Tensor:
    """Read an idx file of bytes: a magic number that ends in the number of dimensions, their sizes, the bytes."""
    content = read_bytes(path)
    sizes = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + sizes.nbytes).reshape(sizes).copy())


def read_fashion_mnist(data: Path | None, val: int = 5000) -> list[tuple[Tensor, Tensor]]:
    """Return images ``(samples, 1, 28, 28)`` in [0, 1] and classes: 60,000 - ``val`` to train, ``val``, 10,000."""
    train_x, train_y, test_x, test_y = (read_idx(path) for path in fetch(FILES, data))
    # a fixed seed: runs with different seeds are compared on the same parts
    order = torch.randperm(len(train_y), generator=torch.Generator().manual_seed(0))
    parts = [(train_x[part], train_y[part]) for part in (order[val:], order[:val])]
    return [(x[:, None] / 255, y.long()) for x, y in (*parts, (test_x, test_y))]


def layer(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """Return a block of convolution, normalization and ReLU."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


def network(width: int) -> nn.Module:
    """Return a network of five convolutions, two of which halve the image, and a linear head."""
    model = nn.Sequential(
        layer(1, width),
        layer(width, 2 * width, stride=2),
        layer(2 * width, 2 * width),
        layer(2 * width, 4 * width, stride=2),
        layer(4 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )
    return model.to(memory_format=torch.channels_last)  # a quarter faster on a CPU


def recipe(
    data: Path | None = None,
    epochs: int = 25,
    batch_size: int = 128,
    width: int = 16,
    lr: float = 1e-2,
    weight_decay: float = 0.05,
    workers: int = 1,
) -> Recipe:
    """Classify pictures of clothes (Fashion-MNIST) with some 70,000 weights.

    Args:
        data: data folder, by default FRAMEWORK_DATA or a cache folder.
        epochs: passes over the training part; more epochs lower the error further.
        batch_size: samples per optimizer step.
        width: channels of the first layer; the last has four times as many.
        lr: highest learning rate of the one-cycle schedule.
        weight_decay: decoupled decay of weights.
        workers: loader processes, which augment the images.
    """
    train, val, test = read_fashion_mnist(data)
    augment = A.Compose(
        [
            A.HorizontalFlip(),
            A.PadIfNeeded(32, 32, border_mode=0),
            A.RandomCrop(28, 28),
            A.CoarseDropout(hole_height_range=(0.2, 0.4), hole_width_range=(0.2, 0.4), num_holes_range=(1, 1)),
        ]
    )
    return Recipe(
        model=network(width),
        data=Data(train, val, test, batch_size=batch_size, eval_batch_size=500, workers=workers),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": MulticlassAccuracy(10, average="micro")},
        plugins=[
            Augmentation(sample=augment),
            HiddenNoise("Flatten", kind="masking", rate=0.1),
            Optimizer("AdamW", lr=lr, weight_decay=weight_decay),
            Schedule("one_cycle", warmup=0.2),
        ],
        trainer={"max_epochs": epochs},
    )
