"""Images of inputs: a grid of them, and the samples before any transform."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.data.batch import input_of
from framework.data.loaders import TrainLoader

_COLUMNS = 8
_TILE = 48  # minimal height and width of a picture, in pixels


def is_pictures(x: Any) -> bool:
    """Return True if a batch of inputs looks like images: ``(N, C, H, W)`` with one channel or three."""
    return isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) > 3


def grid(pictures: Tensor, low: float, high: float) -> Tensor:
    """Return pictures side by side in one picture, eight a row.

    Args:
        pictures: ``(N, C, H, W)``.
        low: the value shown as black.
        high: the value shown as white; values outside are clipped.

    Returns:
        A tensor ``(C, height, width)`` of values from 0 to 1; small pictures are enlarged by repeating pixels.

    Example:
        >>> grid(torch.zeros(3, 1, 8, 8), 0.0, 1.0).shape
        torch.Size([1, 48, 148])
    """
    scaled = ((pictures.float() - low) / max(high - low, 1e-12)).nan_to_num().clamp(0, 1)
    zoom = -(-_TILE // min(scaled.shape[2:]))
    scaled = scaled.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    count, channels, height, width = scaled.shape
    columns, gap = min(count, _COLUMNS), 2
    rows = -(-count // columns)
    # grey gaps, so that black and white edges are both visible
    sheet = scaled.new_full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), 0.5)
    for index, picture in enumerate(scaled):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet


def raw_pictures(loader: TrainLoader, count: int) -> Tensor | None:
    """Return the inputs of the first samples of the loader's next step as the data set returns them.

    Args:
        loader: the training loader; its state and the global random generators do not change.
        count: number of samples.

    Returns:
        A tensor ``(N, C, H, W)``; None if the inputs are not images of one size.
    """
    with _generators_kept():
        samples = [input_of(sample) for sample in loader.untransformed(count)]
    pictures = [_channels_first(torch.as_tensor(x)) for x in samples if isinstance(x, Tensor | np.ndarray)]
    if len(pictures) < len(samples) or len({picture.shape for picture in pictures}) != 1:
        return None
    stacked = torch.stack(pictures)
    return stacked if is_pictures(stacked) else None


def span(pictures: Tensor) -> tuple[float, float]:
    """Return the values to show as black and white: 0 and 255 for integers, else minimum and maximum."""
    if not pictures.is_floating_point():
        return 0.0, 255.0
    least, greatest = pictures.nan_to_num().aminmax()
    return float(least), float(greatest)


def _channels_first(x: Tensor) -> Tensor:
    if x.ndim == 2:
        return x[None]
    return x.permute(2, 0, 1) if x.ndim == 3 and x.shape[2] in (1, 3) and x.shape[0] not in (1, 3) else x


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Restore the global random generators at the end: a data set may draw from them, and so may others."""
    ours, python, numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(ours)
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
