"""Cutout: squares of zeros in training images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from framework.data import input_of, map_rest, replace, rest_of
from framework.ops.dense import check_images, place_of
from framework.ops.draws import Draws
from framework.ops.transforms import RandomCutout, Size
from framework.plugin import Plugin, Step
from framework.ranges import Range
from framework.settings import Probability


class Cutout(Plugin):
    r"""Set a square at a random place of each training image to zero.

    .. math:: x'_{cij} = x_{cij}\,\bigl(1 - \mathbb 1[0 \le i - t < s]\,\mathbb 1[0 \le j - l < s]\bigr)

    with the square's centre uniform over the image's pixels, so that squares near the border are clipped and some
    images stay more visible than others, which the source found to matter. See :func:`framework.ops.images.cutout`.

    A class or a number as target does not change. A mask, which is any tensor of the batch whose last two dimensions
    are the image's height and width, would name pixels that are not to be seen: say by ``target`` what it gets there.

    Args:
        size: the square's side :math:`s` in pixels; a quarter to a half of the image's side (16 for CIFAR-10 and 8 for
            CIFAR-100, both of 32 pixels, in the source). Zero is no square.
        probability: probability that an image gets a square; 1 in the source.
        target: the value that a mask gets in the square: 0 where that is the background, or the loss's
            ``ignore_index``; ``"keep"`` where the network is to guess what the square hides. None refuses masks.

    Raises:
        UserError: if a setting is out of bounds, the inputs are not images, or there is a mask and no ``target``.

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
    probability: Annotated[Probability, Range(0, 1)] = 1.0
    target: float | Literal["keep"] | None = None

    examples = ({"size": 4}, {"size": 3, "probability": 0.5})
    absent = ({"size": 0}, {"probability": 0.0})

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Return the batch with a square of each image set to zero."""
        if not (self.size and self.probability):
            return batch
        x = input_of(batch)
        check_images(x, self.describe())
        transform = RandomCutout(self.size, self.probability, self.target)
        change = transform.on_target
        if change is not None:
            masks = [leaf for leaf in rest_of(batch) if place_of(leaf, x.shape[-2], x.shape[-1]) == "dense"]
            if masks:
                moved = {id(mask): change(mask, Draws(step, self)) for mask in masks}
                batch = map_rest(batch, lambda leaf: moved.get(id(leaf), leaf))
        return replace(batch, input=transform(x, Draws(step, self)))
