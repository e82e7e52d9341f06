"""Batch transforms against albumentations sample by sample, and samples per second through the loader's workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import albumentations as A
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks.versus import Row, versus
from framework import Data
from framework.ops.draws import Draws
from framework.ops.transforms import (
    GaussianNoise,
    RandomAffine,
    RandomBrightnessContrast,
    RandomCrop,
    RandomCutout,
    RandomFlip,
)
from framework.plugin import Plugin, Step
from framework.plugin.edits import WeightEdits
from plugins.augmentation import Augmentation
from plugins.cut_mix import CutMix
from plugins.input_noise import InputNoise
from plugins.mixup import Mixup

SAMPLES, SIDE = 256, 32


class Blend(A.ImageOnlyTransform):
    """Mix an image with a partner, or paste a box of the partner into it; albumentations has no such transform.

    Args:
        partners: images to choose from.
        box: paste a box instead of mixing.
    """

    def __init__(self, partners: np.ndarray, box: bool) -> None:
        super().__init__(p=1.0)
        self.partners, self.box = partners, box

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Return the mixture."""
        partner = self.partners[self.py_random.randrange(len(self.partners))]
        weight = self.py_random.betavariate(1.0, 1.0)
        if not self.box:
            return img * np.float32(weight) + partner * np.float32(1.0 - weight)
        cut = int(SIDE * (1.0 - weight) ** 0.5)
        top, left = self.py_random.randrange(SIDE - cut + 1), self.py_random.randrange(SIDE - cut + 1)
        mixed = img.copy()
        mixed[top : top + cut, left : left + cut] = partner[top : top + cut, left : left + cut]
        return mixed


class Samples(Dataset[Any]):
    """A typical data set: the pipeline is called on each image.

    Args:
        images: arrays ``(height, width, channels)``.
        pipeline: albumentations' pipeline.
    """

    def __init__(self, images: list[np.ndarray], pipeline: A.Compose) -> None:
        self.images, self.pipeline = images, pipeline

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.pipeline(image=self.images[index])["image"]
        if isinstance(image, Tensor):
            return image, 0
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), 0


def counterparts(images: np.ndarray) -> dict[str, tuple[Any, list[Any]]]:
    """Return for each batch transform or plugin its equivalent in albumentations."""
    half = SIDE // 2
    hole = {"num_holes_range": (1, 1), "hole_height_range": (half, half), "hole_width_range": (half, half)}
    return {
        "flip": (RandomFlip(), [A.HorizontalFlip(p=0.5)]),
        "crop": (RandomCrop(4), [A.Pad(4, p=1.0), A.RandomCrop(SIDE, SIDE)]),
        "affine": (RandomAffine(), [A.Affine(scale=(1 / 1.1, 1.1), rotate=(-10, 10), p=1.0)]),
        "cutout": (RandomCutout(half), [A.CoarseDropout(**hole, p=1.0)]),
        "noise": (GaussianNoise(), [A.GaussNoise(std_range=(0.1, 0.1), p=1.0)]),
        "brightness and contrast": (RandomBrightnessContrast(), [A.RandomBrightnessContrast(p=1.0)]),
        "input noise": (InputNoise(0.1), [A.GaussNoise(std_range=(0.1, 0.1), p=1.0)]),
        "mixup": (Mixup(1.0), [Blend(images, box=False)]),
        "cut mix": (CutMix(1.0), [Blend(images, box=True)]),
    }


class Nobody(Plugin):
    """The consumer of the draws."""


def on_batch(transform: Any, x: Tensor) -> Callable[[], Any]:
    """Return a function that calls a transform or plugin on a batch."""
    step = Step(0, WeightEdits())
    step.count = step.samples = len(x)
    batch, drawer = (x, torch.zeros(len(x), dtype=torch.long)), Nobody()

    def run() -> Any:
        step.index += 1
        if isinstance(transform, Plugin):
            return transform.transform_batch(batch, step)
        return transform(x, Draws(step, drawer))

    return run


def transforms(rounds: int) -> list[Row]:
    """Return the rows of batch transforms: speed over that of albumentations."""
    images = np.random.default_rng(0).random((SAMPLES, SIDE, SIDE, 3), dtype=np.float32)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    listed, table = list(images), []
    for name, (transform, chain) in counterparts(images).items():
        data = Samples(listed, A.Compose(chain))
        run = on_batch(transform, x)

        def as_used(data: Samples = data) -> Any:
            return default_collate([data[index] for index in range(SAMPLES)])

        def bare(chain: list[Any] = chain) -> None:
            for image in listed:
                for one in chain:
                    image = one(image=image)["image"]

        # several calls in a row, as in training: the first maps pages that the other contender has freed
        table.append(versus(f"{name} / data set", run, as_used, goal=">= 5", rounds=rounds, times=4, faster=True))
        table.append(versus(f"{name} / bare loop", run, bare, goal="", rounds=rounds, times=4, faster=True))
    return table


class Stored(Dataset[Any]):
    """A typical data set: images in memory, returned as they are.

    Args:
        images: arrays ``(height, width, channels)``.
    """

    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self.images = list(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], 0


def pipeline(rounds: int) -> list[Row]:
    """Return the rows of the sample pipeline: its speed over a bare loop's times the cores it can use."""
    table = []
    for side, count in ((32, 16_384), (224, 4096)):
        few = np.random.default_rng(0).integers(0, 256, (512, side, side, 3), dtype=np.uint8)
        images = [few[index % len(few)] for index in range(count)]
        chain = [A.Pad(side // 8, p=1.0), A.RandomCrop(side, side), A.HorizontalFlip(p=0.5)]
        chain += [A.RandomBrightnessContrast(p=0.5), A.Affine(rotate=(-10, 10), p=0.5), A.ToTensorV2()]
        bare = A.Compose(chain)
        plugin = Augmentation(A.Compose(chain))
        for workers in (0, 2):
            data = Data(Stored(images), batch_size=64, workers=workers)
            loader = data.train_loader(seed=0, transforms=[("augmentation", plugin.transform_sample)])

            def ours(loader: Any = loader) -> None:
                loader.set_epoch(loader.epoch + 1)
                for _ in loader:
                    pass

            def loop(bare: Any = bare, images: list[np.ndarray] = images) -> None:
                for image in images:
                    bare(image=image)

            cores = min(max(workers, 1), len(os.sched_getaffinity(0)))
            name = f"{side}x{side}, {workers} workers / bare loop x {cores} cores"
            table.append(versus(name, ours, loop, goal=">= 0.9", rounds=rounds, faster=True, share=1 / cores))
            others = Samples(images, bare)
            common = DataLoader(others, 64, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

            def theirs(common: Any = common) -> None:
                for _ in common:
                    pass

            name = f"{side}x{side}, {workers} workers / a DataLoader"
            table.append(versus(name, ours, theirs, goal="", rounds=rounds, faster=True))
            loader.close()
    return table


def rows(rounds: int = 10) -> list[Row]:
    """Return the rows; torch's number of threads is the caller's."""
    return [*transforms(rounds), *pipeline(max(rounds // 3, 2))]
