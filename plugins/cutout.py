"""Cutout: squares of zeros in training images."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from framework.data import input_of, replace
from framework.errors import UserError
from framework.ops.draws import Draws
from framework.ops.transforms import RandomCutout, Size
from framework.plugin import Plugin, Step
from framework.settings import Probability


class Cutout(Plugin):
    r"""Set a square at a random place of each training image to zero.

    .. math:: x'_{cij} = x_{cij}\,\bigl(1 - \mathbb 1[0 \le i - t < s]\,\mathbb 1[0 \le j - l < s]\bigr)

    with the square's centre uniform over the image's pixels, so that squares near the border are clipped and some
    images stay more visible than others, which the source found to matter. The target does not change. See
    :func:`framework.ops.images.cutout`.

    Args:
        size: the square's side :math:`s` in pixels; a quarter to a half of the image's side (16 for CIFAR-10 and 8 for
            CIFAR-100, both of 32 pixels, in the source). Zero is no square.
        probability: probability that an image gets a square; 1 in the source.

    Raises:
        UserError: if a setting is out of bounds, or the inputs are not images.

    Example:
        >>> Cutout(8).describe()
        'Cutout(size=8)'

    Interacts with:
        Normalization: zero is the mean of standardized inputs, and black otherwise. Place it after ``Augmentation``,
        whose crops would move squares out of the image. Placed before ``Mixup`` or ``CutMix``, squares are mixed;
        placed after them, squares cover mixtures.

    Source: DeVries and Taylor (2017), Improved regularization of convolutional neural networks with Cutout.
    """

    size: Size
    probability: Probability = 1.0

    examples = ({"size": 4}, {"size": 3, "probability": 0.5})
    absent = ({"size": 0}, {"probability": 0.0})

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Return the batch with a square of each image set to zero."""
        if not (self.size and self.probability):
            return batch
        x = input_of(batch)
        if not (isinstance(x, Tensor) and x.ndim >= 3):
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UserError(f"{self.describe()}: needs images (samples, …, height, width), received {shape}")
        return replace(batch, input=RandomCutout(self.size, self.probability)(x, Draws(step, self)))
