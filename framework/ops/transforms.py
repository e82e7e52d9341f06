"""Random transforms of batches of images, vectorized over samples; each sample gets its own draws.

A transform is any callable ``(x, draws)``: ``x`` has shape ``(samples, …)``, ``draws`` is a
:class:`framework.ops.draws.Draws`. Those here take images ``(samples, channels, height, width)`` and call the functions
of :mod:`framework.ops.images`.

What happens to a target that has the image's height and width, such as a mask, a transform declares by an attribute:

- ``on_target = None``: no pixel moves, so the target stays as it is.
- ``on_target(target, draws)``: called with the same draws, it returns the target, changed as the image is. Targets are
  ``(samples, …, height, width)`` of any type; their values must not be interpolated.
- no such attribute: targets of that kind are refused.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.errors import UserError
from framework.ops.dense import check_images
from framework.ops.draws import Draws, check_floating
from framework.ops.images import Fill, affine, brightness_contrast, crop, cutout, flip, random_centres
from framework.ops.noise import additive
from framework.settings import Bounds, NonNegative, PositiveInt, Probability, check_settings

Size = Annotated[int, Bounds(low=0)]


@dataclasses.dataclass(frozen=True)
class BatchTransform(ABC):
    """Base class of the transforms here: a frozen dataclass whose settings are checked against their types.

    Raises:
        UserError: if a setting has the wrong type or is out of bounds.
    """

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the transformed samples."""


@dataclasses.dataclass(frozen=True)
class RandomFlip(BatchTransform):
    """Mirror each image with a probability; see :func:`flip`.

    Args:
        probability: probability that an image is mirrored.
        axis: ``"horizontal"`` swaps left and right, ``"vertical"`` top and bottom.

    Example:
        >>> RandomFlip(axis="vertical")
        RandomFlip(probability=0.5, axis='vertical')
    """

    probability: Probability = 0.5
    axis: Literal["horizontal", "vertical"] = "horizontal"

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the images, a random subset of them mirrored."""
        check_images(x, repr(self), ndim=2)
        return self.on_target(x, draws)

    def on_target(self, target: Tensor, draws: Draws) -> Tensor:
        """Return masks or images, those of the mirrored images mirrored."""
        mirrored = draws.uniform(target, 1)[:, 0] < self.probability
        return flip(target, mirrored, -1 if self.axis == "horizontal" else -2)


@dataclasses.dataclass(frozen=True)
class RandomCrop(BatchTransform):
    """Pad each image and cut a window out of it, all positions equally likely; see :func:`crop`.

    With a window of the image's size this shifts each image by up to ``padding`` pixels.

    Args:
        padding: pixels on each side; 4 is usual for 32 x 32 photographs, 2 for 28 x 28 drawings.
        size: height and width of the window, None for those of the image.
        fill: what the padding holds: zeros, the mirrored image or the border pixels.

    Raises:
        UserError: if the window is larger than the padded image, or the padding is too large to mirror the image.
    """

    padding: Size = 4
    size: PositiveInt | None = None
    fill: Fill = "constant"

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return a random window of each padded image."""
        check_images(x, repr(self))
        return self._window(x, draws) if x.ndim == 4 else _by_planes(self._window, x, draws)

    def on_target(self, target: Tensor, draws: Draws) -> Tensor:
        """Return the window of each padded mask that its image has; constant padding is 0."""
        return _by_planes(self._window, target, draws)

    def _window(self, x: Tensor, draws: Draws) -> Tensor:
        height, width = x.shape[-2:]
        size = (height, width) if self.size is None else (self.size, self.size)
        free_rows, free_columns = height + 2 * self.padding - size[0], width + 2 * self.padding - size[1]
        if min(free_rows, free_columns) < 0 or (self.fill == "reflect" and self.padding >= min(height, width)):
            raise UserError(f"{self!r}: does not fit images of {height} x {width}; change size or padding")
        if free_rows == free_columns == 0:
            return x
        corners = random_centres(draws.uniform(x, 2), free_rows + 1, free_columns + 1)
        return crop(_pad(x, self.padding, self.fill) if self.padding else x, corners, size)


@dataclasses.dataclass(frozen=True)
class RandomAffine(BatchTransform):
    """Rotate and magnify each image; see :func:`affine`. Slower than flips and crops, since it interpolates.

    Args:
        degrees: angles are uniform in ``[-degrees, degrees]``; 5 to 15 are usual.
        scale: magnifications are log-uniform between ``1 / (1 + scale)`` and ``1 + scale``; 0.05 to 0.2 are usual.
        fill: what lies outside the image: zeros, the mirrored image or the border pixels.
    """

    degrees: Annotated[float, Bounds(low=0, high=180)] = 10.0
    scale: NonNegative = 0.1
    fill: Fill = "constant"

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the rotated and magnified images."""
        check_images(x, repr(self))
        if x.dtype == torch.bool or x.is_complex():
            raise UserError(f"{self!r}: interpolates numbers, received {x.dtype}; convert them to floating-point ones")
        return self._turned(x, draws) if x.ndim == 4 else _by_planes(self._turned, x, draws)

    def on_target(self, target: Tensor, draws: Draws) -> Tensor:
        """Return the masks, rotated and magnified as their images, without interpolation; constant fill is 0."""
        return _by_planes(lambda x, draws: self._turned(x, draws, nearest=True), target, draws)

    def _turned(self, x: Tensor, draws: Draws, *, nearest: bool = False) -> Tensor:
        if not (self.degrees or self.scale):
            return x
        signed = draws.uniform(x, 2) * 2.0 - 1.0
        scales = torch.exp(signed[:, 1] * math.log1p(self.scale))
        return affine(x, signed[:, 0] * math.radians(self.degrees), scales, self.fill, nearest=nearest)


@dataclasses.dataclass(frozen=True)
class RandomCutout(BatchTransform):
    """Set a square at a random place of each image to zero; see :func:`cutout`.

    Args:
        size: side of the square in pixels; about half the image's side for a strong effect.
        probability: probability that an image gets a square.
        target: the value that a mask gets in the square, such as 0 or the loss's ``ignore_index``, or ``"keep"`` where
            the target is to stay as it is, as for reconstruction. None refuses a target of the image's size.
    """

    size: Size
    probability: Probability = 1.0
    target: float | Literal["keep"] | None = None

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the images, a random subset of them with a square of zeros."""
        check_images(x, repr(self))
        return self._with_square(x, draws, 0.0)

    @property
    def on_target(self) -> Callable[[Tensor, Draws], Tensor] | None:
        """What changes a mask: None where it stays."""
        return None if self.target == "keep" or not (self.size and self.probability) else self._fill_target

    def _fill_target(self, target: Tensor, draws: Draws) -> Tensor:
        if self.target is None or isinstance(self.target, str):
            raise UserError(
                f"{self!r}: the target {tuple(target.shape)} has the image's size, which the square leaves without an"
                " image; give target=, its value in the square (0, or the loss's ignore_index), or target='keep'"
            )
        return self._with_square(target, draws, self.target)

    def _with_square(self, x: Tensor, draws: Draws, value: float) -> Tensor:
        if not (self.size and self.probability):
            return x
        # always three draws, so that changing the probability moves no square
        u = draws.uniform(x, 3)
        centres = random_centres(u[:, :2], *x.shape[-2:])
        return cutout(x, centres, self.size, u[:, 2] < self.probability, value=value)


@dataclasses.dataclass(frozen=True)
class GaussianNoise(BatchTransform):
    """Add independent Gaussian noise to every entry; see :func:`framework.ops.noise.additive`.

    Args:
        std: standard deviation in units of the inputs; 0.05 to 0.3 are usual on standardized inputs.
    """

    std: NonNegative = 0.1

    on_target: ClassVar[None] = None

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the samples with noise added."""
        if not self.std:
            return x
        check_floating(x, repr(self))
        return additive(x, self.std, draws.normal(x))


@dataclasses.dataclass(frozen=True)
class RandomBrightnessContrast(BatchTransform):
    """Change brightness and contrast of each image; see :func:`brightness_contrast`. Nothing is clipped.

    Args:
        brightness: shifts are uniform in ``[-brightness, brightness]``, in units of the inputs; 0.1 to 0.3
            are usual.
        contrast: changes are uniform in ``[-contrast, contrast]``, at most 1; 0.1 to 0.3 are usual.
    """

    brightness: NonNegative = 0.2
    contrast: Probability = 0.2

    on_target: ClassVar[None] = None

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the images with changed brightness and contrast."""
        if not (self.brightness or self.contrast):
            return x
        check_floating(x, repr(self))
        signed = draws.uniform(x, 2) * 2.0 - 1.0
        return brightness_contrast(x, signed[:, 0] * self.brightness, signed[:, 1] * self.contrast)


def _by_planes(change: Callable[[Tensor, Draws], Tensor], target: Tensor, draws: Draws) -> Tensor:
    """Change ``(samples, …, height, width)`` by a function of ``(samples, channels, height, width)``."""
    changed = change(target.reshape(len(target), -1, *target.shape[-2:]), draws)
    return changed.reshape(*target.shape[:-2], *changed.shape[-2:])


def _pad(x: Tensor, padding: int, fill: Fill) -> Tensor:
    """Pad height and width; all kinds of padding for all types of numbers."""
    if fill != "constant" and not x.is_floating_point():
        # torch mirrors no whole numbers; bits are copied, so that any number is kept
        rows, columns = (_outside(size, padding, fill, x.device) for size in x.shape[-2:])
        return x.index_select(-2, rows).index_select(-1, columns)
    return F.pad(x, [padding] * 4, mode=fill)


def _outside(size: int, padding: int, fill: Fill, device: torch.device) -> Tensor:
    """Return for each position of a padded side of ``size`` pixels the pixel that it holds."""
    places = torch.arange(-padding, size + padding, device=device)
    if fill == "replicate":
        return places.clamp_(0, size - 1)
    places = places.abs_()
    return torch.where(places < size, places, 2 * (size - 1) - places)
