r"""Transforms of batches of images, vectorized over samples, with other draws for each sample.

First the mathematics as pure functions of tensors and draws, then the callables that draw. A callable is anything that
takes ``(x, draws)``, ``x`` being ``(samples, …)`` and ``draws`` a :class:`Draws`; the ones here take images
``(samples, channels, height, width)``.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from framework.errors import UserError
from framework.ops.noise import additive
from framework.settings import Bounds, NonNegative, PositiveInt, Probability, check_settings

if TYPE_CHECKING:
    from framework.plugin.plugin import Plugin
    from framework.plugin.step import Step

Fill = Literal["constant", "reflect", "replicate"]
Size = Annotated[int, Bounds(low=0)]


class Draws:
    """The draws of one transform in one micro-batch: a row a sample, whichever way the step's batch is split.

    Args:
        step: the step at hand.
        plugin: who draws.
        who: tells the transforms of one plugin apart.
    """

    def __init__(self, step: Step, plugin: Plugin, who: str = "") -> None:
        self._step, self._plugin, self._who = step, plugin, who
        self._asked = 0

    def uniform(self, x: Tensor, numbers: int) -> Tensor:
        """Return ``(samples, numbers)`` draws from [0, 1) in float32, for the samples of ``x``."""
        like = torch.empty(len(x), numbers, device=x.device, dtype=torch.float32)
        return self._step.uniform(self._plugin, like, self._next())

    def normal(self, x: Tensor) -> Tensor:
        r"""Return draws from :math:`\mathcal N(0, 1)` with the shape and type of ``x``."""
        return self._step.normal(self._plugin, x, self._next())

    def _next(self) -> str:
        self._asked += 1
        return f"{self._who}/{self._asked}"


# ---- the mathematics -------------------------------------------------------------------------------------------------


def flip(x: Tensor, flipped: Tensor, dim: int = -1) -> Tensor:
    """Return the images with those where ``flipped`` is true mirrored along ``dim``.

    Args:
        x: ``(samples, …)``.
        flipped: booleans ``(samples,)``.
        dim: the dimension to reverse, -1 for left and right of images.

    Example:
        >>> flip(torch.tensor([[1, 2], [3, 4]]), torch.tensor([True, False])).tolist()
        [[2, 1], [3, 4]]
    """
    # of other devices the number of mirrored images is not known here without waiting for them
    if x.device.type != "cpu" or x.requires_grad or not (x.is_contiguous() and x.numel()):
        return torch.where(_over(flipped, x), x.flip(dim), x)
    # all are mirrored, which is fast, and the others copied back: a third of the time of a choice entry by entry
    mirrored, others = x.flip(dim), (~flipped).numpy()
    _rows(mirrored)[others] = _rows(x)[others]
    return mirrored


def crop(x: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
    r"""Return from each image the window at its own corner: :math:`x'_{ncij} = x_{n,c,\,t_n + i,\,l_n + j}`.

    Args:
        x: ``(samples, channels, height, width)``.
        corners: whole numbers ``(samples, 2)``: top :math:`t` and left :math:`l` of each window, which lies inside.
        size: height and width of the windows.

    Example:
        >>> crop(torch.arange(9.0).view(1, 1, 3, 3), torch.tensor([[1, 0]]), (2, 2)).tolist()
        [[[[3.0, 4.0], [6.0, 7.0]]]]
    """
    count, channels, height, width = x.shape
    # every stretch of one window's width, wherever it begins, as a row of a view without a copy: rows are copied fast
    flat = x.contiguous()
    stretches = flat.as_strided((flat.numel() - size[1] + 1, size[1]), (1, 1))
    planes = torch.arange(count * channels, device=x.device).mul_(height * width).view(count, channels, 1)
    rows = torch.arange(size[0], device=x.device).mul_(width)
    starts = planes + (corners[:, :1] * width + corners[:, 1:])[:, :, None] + rows
    return stretches.index_select(0, starts.view(-1)).view(count, channels, *size)


def affine(x: Tensor, angles: Tensor, scales: Tensor, fill: Fill = "constant") -> Tensor:
    r"""Return each image turned about its centre by its angle and magnified by its scale, bilinearly interpolated.

    The output at :math:`p` (pixels from the centre, x to the right, y downward) is the input at

    .. math:: \frac1s \begin{pmatrix} \cos\varphi & -\sin\varphi \\ \sin\varphi & \cos\varphi \end{pmatrix} p,

    so that positive angles turn the image counter-clockwise, as seen.

    Args:
        x: ``(samples, channels, height, width)``, floating-point.
        angles: :math:`\varphi` in radians, ``(samples,)``.
        scales: :math:`s > 0`, ``(samples,)``; 2 doubles the size of what is seen.
        fill: what lies outside the image: zeros, its mirror image or its border.

    Example:
        >>> quarter = affine(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([torch.pi / 2]), torch.ones(1))
        >>> quarter.round().tolist()
        [[[[2.0, 4.0], [1.0, 3.0]]]]
    """
    height, width = x.shape[-2:]
    cos, sin, zero = angles.cos() / scales, angles.sin() / scales, torch.zeros_like(angles)
    # grid_sample counts each axis from -1 to 1, so that in images that are not square the axes differ in unit
    rows = (cos, -sin * (height / width), zero, sin * (width / height), cos, zero)
    theta = torch.stack(rows, dim=1).view(-1, 3).to(x.dtype)
    # F.affine_grid with its two coordinates apart: a fifth of its time, and grid_sample reads both as fast
    grid = (theta @ _pixels(height, width, x)).view(-1, 2, height, width).permute(0, 2, 3, 1)
    outside = {"constant": "zeros", "reflect": "reflection", "replicate": "border"}[fill]
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def cutout(x: Tensor, centres: Tensor, size: int, hit: Tensor | None = None) -> Tensor:
    r"""Return the images with a square of zeros in each, clipped at the border.

    .. math:: x'_{ncij} = x_{ncij}\,\bigl(1 - \mathbb 1[0 \le i - t_n < s]\,\mathbb 1[0 \le j - l_n < s]\bigr),
        \qquad (t_n, l_n) = (y_n, x_n) - \lfloor s/2 \rfloor

    Args:
        x: ``(samples, …, height, width)``, finite.
        centres: whole numbers ``(samples, 2)``: row and column of each square's centre.
        size: the square's side :math:`s` in pixels.
        hit: booleans ``(samples,)``: which images get a square; None for all.

    Example:
        >>> cutout(torch.ones(1, 3, 3), torch.tensor([[0, 1]]), 2).tolist()
        [[[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]
    """
    corners = centres - size // 2
    rows = _within(x.shape[-2], corners[:, :1], size)
    columns = _within(x.shape[-1], corners[:, 1:], size)
    if hit is not None:
        rows = rows & hit[:, None]
    # products, not masked_fill: it is several times as slow where the mask is the same for all channels
    kept = 1 - rows.to(x.dtype)[:, :, None] * columns.to(x.dtype)[:, None, :]
    return x * kept.view(len(x), *[1] * (x.ndim - 3), *kept.shape[1:])


def brightness_contrast(x: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    r"""Return :math:`(1 + c_n)(x_n - \bar x_n) + \bar x_n + b_n` with each image's own mean :math:`\bar x_n`.

    Args:
        x: ``(samples, …)``, floating-point.
        brightness: :math:`b`, in units of ``x``, ``(samples,)``.
        contrast: :math:`c \ge -1`, ``(samples,)``.

    Example:
        >>> brightness_contrast(torch.tensor([[1.0, 3.0]]), torch.tensor([0.5]), torch.tensor([1.0])).tolist()
        [[0.5, 4.5]]
    """
    mean = x.flatten(1).mean(dim=1)
    offset = brightness.to(x.dtype) - contrast.to(x.dtype) * mean
    return torch.addcmul(_over(offset, x), x, _over(1.0 + contrast.to(x.dtype), x))


def random_centres(u: Tensor, height: int, width: int) -> Tensor:
    """Return pixels ``(samples, 2)``, row and column, each as likely, for uniform draws ``(samples, 2)``.

    Example:
        >>> random_centres(torch.tensor([[0.0, 0.99]]), 4, 10).tolist()
        [[0, 9]]
    """
    return (u * u.new_tensor([height, width])).long()


def _pixels(height: int, width: int, like: Tensor) -> Tensor:
    """Return columns, rows and ones ``(3, height * width)`` of pixels, as ``grid_sample`` counts them from -1 to 1."""
    y, x = (torch.arange(1 - size, size, 2, device=like.device, dtype=like.dtype) / size for size in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones_like(x).repeat(height)])


def _rows(x: Tensor) -> NDArray[np.uint8]:
    """Return the bytes of each sample of a contiguous tensor; NumPy copies rows twice as fast as torch."""
    rows: NDArray[np.uint8] = x.detach().view(len(x), -1).view(torch.uint8).numpy()
    return rows


def _over(values: Tensor, x: Tensor) -> Tensor:
    """Return one value a sample in a shape that broadcasts over ``x``."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _within(length: int, low: Tensor, size: int) -> Tensor:
    """Tell for each sample which of ``length`` positions lie in ``[low, low + size)``."""
    offsets = torch.arange(length, device=low.device) - low
    return (offsets >= 0) & (offsets < size)


# ---- the callables ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BatchTransform(ABC):
    """A transform of a batch whose settings are typed fields; a subclass says how it is called.

    Raises:
        UserError: where a setting is of the wrong type or out of bounds.
    """

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the samples ``x``, changed."""


@dataclasses.dataclass(frozen=True)
class RandomFlip(BatchTransform):
    """Mirror each image with a probability; see :func:`flip`.

    Args:
        probability: of each image to be mirrored.
        axis: ``"horizontal"`` swaps left and right, ``"vertical"`` top and bottom.

    Example:
        >>> RandomFlip(axis="vertical")
        RandomFlip(probability=0.5, axis='vertical')
    """

    probability: Probability = 0.5
    axis: Literal["horizontal", "vertical"] = "horizontal"

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the images, some of them mirrored."""
        return flip(x, draws.uniform(x, 1)[:, 0] < self.probability, -1 if self.axis == "horizontal" else -2)


@dataclasses.dataclass(frozen=True)
class RandomCrop(BatchTransform):
    """Pad each image and cut a window out of it, all places as likely; see :func:`crop`.

    Where the window is as large as the image this moves each image by up to ``padding`` pixels.

    Args:
        padding: pixels on each side; 4 for 32 x 32 photographs, 2 for 28 x 28 drawings.
        size: height and width of the window, None for the image's own.
        fill: what is padded: zeros, the image's mirror image or its border.

    Raises:
        UserError: where the window is larger than the padded image, or the padding too large for a mirror image.
    """

    padding: Size = 4
    size: PositiveInt | None = None
    fill: Fill = "constant"

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return a window of each padded image."""
        height, width = x.shape[-2:]
        size = (height, width) if self.size is None else (self.size, self.size)
        free_rows, free_columns = height + 2 * self.padding - size[0], width + 2 * self.padding - size[1]
        if min(free_rows, free_columns) < 0 or (self.fill == "reflect" and self.padding >= min(height, width)):
            raise UserError(f"{self!r}: does not fit images of {height} x {width}; change size or padding")
        if free_rows == free_columns == 0:
            return x
        corners = random_centres(draws.uniform(x, 2), free_rows + 1, free_columns + 1)
        return crop(F.pad(x, [self.padding] * 4, mode=self.fill) if self.padding else x, corners, size)


@dataclasses.dataclass(frozen=True)
class RandomAffine(BatchTransform):
    """Turn and magnify each image; see :func:`affine`. Dearer than flips and crops, since it interpolates.

    Args:
        degrees: angles are uniform in ``[-degrees, degrees]``; 5 to 15.
        scale: magnifications are log-uniform between ``1 / (1 + scale)`` and ``1 + scale``; 0.05 to 0.2.
        fill: what lies outside the image.
    """

    degrees: Annotated[float, Bounds(low=0, high=180)] = 10.0
    scale: NonNegative = 0.1
    fill: Fill = "constant"

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the images turned and magnified."""
        if not (self.degrees or self.scale):
            return x
        signed = draws.uniform(x, 2) * 2.0 - 1.0
        scales = torch.exp(signed[:, 1] * math.log1p(self.scale))
        return affine(x, signed[:, 0] * math.radians(self.degrees), scales, self.fill)


@dataclasses.dataclass(frozen=True)
class RandomCutout(BatchTransform):
    """Put a square of zeros at a random place of each image; see :func:`cutout`.

    Args:
        size: side of the square in pixels; about half an image's side where it should be strong.
        probability: of each image to get a square.
    """

    size: Size
    probability: Probability = 1.0

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the images with a square of zeros in those that are hit."""
        if not (self.size and self.probability):
            return x
        # three draws at any probability, so that a change of it moves no square
        u = draws.uniform(x, 3)
        return cutout(x, random_centres(u[:, :2], *x.shape[-2:]), self.size, u[:, 2] < self.probability)


@dataclasses.dataclass(frozen=True)
class GaussianNoise(BatchTransform):
    """Add independent Gaussian noise to every entry; see :func:`framework.ops.noise.additive`.

    Args:
        std: standard deviation in units of the inputs; 0.05 to 0.3 on standardized inputs.
    """

    std: NonNegative = 0.1

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the samples with noise."""
        return additive(x, self.std, draws.normal(x)) if self.std else x


@dataclasses.dataclass(frozen=True)
class RandomBrightnessContrast(BatchTransform):
    """Change brightness and contrast of each image; see :func:`brightness_contrast`. Nothing is clipped.

    Args:
        brightness: shifts are uniform in ``[-brightness, brightness]``, in units of the inputs; 0.1 to 0.3.
        contrast: changes are uniform in ``[-contrast, contrast]``, at most 1; 0.1 to 0.3.
    """

    brightness: NonNegative = 0.2
    contrast: Probability = 0.2

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the images with another brightness and contrast."""
        if not (self.brightness or self.contrast):
            return x
        signed = draws.uniform(x, 2) * 2.0 - 1.0
        return brightness_contrast(x, signed[:, 0] * self.brightness, signed[:, 1] * self.contrast)
