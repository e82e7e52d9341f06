r"""Pure functions of batches of images ``(samples, channels, height, width)``: flip, crop, affine, cutout, brightness.

They take the random numbers as arguments; :mod:`framework.ops.transforms` draws these.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Fill = Literal["constant", "reflect", "replicate"]


def flip(x: Tensor, flipped: Tensor, dim: int = -1) -> Tensor:
    """Mirror the images for which ``flipped`` is true along a dimension.

    Args:
        x: ``(samples, …)``.
        flipped: booleans ``(samples,)``.
        dim: the dimension to reverse, -1 for left and right of images.

    Example:
        >>> flip(torch.tensor([[1, 2], [3, 4]]), torch.tensor([True, False])).tolist()
        [[2, 1], [3, 4]]
    """
    # indexing by a mask needs the number of mirrored images, and other devices would have to be waited for to know it
    if x.device.type != "cpu" or x.requires_grad or not (x.is_contiguous() and x.numel()):
        return torch.where(_over(flipped, x), x.flip(dim), x)
    # mirroring all images and copying the others back takes a third of the time of torch.where
    mirrored, others = x.flip(dim), (~flipped).numpy()
    _rows(mirrored)[others] = _rows(x)[others]
    return mirrored


def crop(x: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
    r"""Cut a window out of each image at its own corner: :math:`x'_{ncij} = x_{n,c,\,t_n + i,\,l_n + j}`.

    Args:
        x: ``(samples, channels, height, width)``.
        corners: whole numbers ``(samples, 2)``: top :math:`t` and left :math:`l` of each window; all windows lie inside
            their images.
        size: height and width of the windows.

    Example:
        >>> crop(torch.arange(9.0).view(1, 1, 3, 3), torch.tensor([[1, 0]]), (2, 2)).tolist()
        [[[[3.0, 4.0], [6.0, 7.0]]]]
    """
    count, channels, height, width = x.shape
    # a view whose rows are all stretches of one window's width: whole rows are copied fast
    flat = x.contiguous()
    stretches = flat.as_strided((flat.numel() - size[1] + 1, size[1]), (1, 1))
    planes = torch.arange(count * channels, device=x.device).mul_(height * width).view(count, channels, 1)
    rows = torch.arange(size[0], device=x.device).mul_(width)
    starts = planes + (corners[:, :1] * width + corners[:, 1:])[:, :, None] + rows
    return stretches.index_select(0, starts.view(-1)).view(count, channels, *size)


def affine(x: Tensor, angles: Tensor, scales: Tensor, fill: Fill = "constant", *, nearest: bool = False) -> Tensor:
    r"""Rotate each image about its centre by its own angle and magnify it by its own scale, interpolated bilinearly.

    The output at :math:`p` (pixels from the centre, x to the right, y downward) is the input at

    .. math:: \frac1s \begin{pmatrix} \cos\varphi & -\sin\varphi \\ \sin\varphi & \cos\varphi \end{pmatrix} p,

    so that positive angles turn the image counter-clockwise on the screen.

    Whole numbers are interpolated as floating-point ones and rounded.

    Args:
        x: ``(samples, channels, height, width)``, no booleans unless ``nearest``.
        angles: :math:`\varphi` in radians, ``(samples,)``.
        scales: :math:`s > 0`, ``(samples,)``; 2 doubles the size of what the image shows.
        fill: what lies outside the image: zeros, the mirrored image or the border pixels.
        nearest: take the nearest pixel instead of interpolating, for masks, whose values must not be mixed.

    Example:
        >>> quarter = affine(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([torch.pi / 2]), torch.ones(1))
        >>> quarter.round().tolist()
        [[[[2.0, 4.0], [1.0, 3.0]]]]
    """
    if not x.is_floating_point():
        # exact for whole numbers up to 2^24 and 2^53
        wide = x.to(torch.float64 if x.dtype in (torch.int32, torch.int64) else torch.float32)
        moved = affine(wide, angles, scales, fill, nearest=nearest)
        return moved.round_().to(x.dtype)
    height, width = x.shape[-2:]
    cos, sin, zero = angles.cos() / scales, angles.sin() / scales, torch.zeros_like(angles)
    # grid_sample counts each axis from -1 to 1, so in images that are not square the axes differ in scale
    rows = (cos, -sin * (height / width), zero, sin * (width / height), cos, zero)
    theta = torch.stack(rows, dim=1).view(-1, 3).to(x.dtype)
    # both coordinates as separate planes: a fifth of the time of F.affine_grid, and grid_sample is as fast on them
    grid = (theta @ _pixels(height, width, x)).view(-1, 2, height, width).permute(0, 2, 3, 1)
    outside = {"constant": "zeros", "reflect": "reflection", "replicate": "border"}[fill]
    mode = "nearest" if nearest else "bilinear"
    return F.grid_sample(x, grid, mode=mode, padding_mode=outside, align_corners=False)


def cutout(x: Tensor, centres: Tensor, size: int, hit: Tensor | None = None, *, value: float = 0.0) -> Tensor:
    r"""Set a square to zero, or to another value, in each image, clipped at the border.

    .. math:: x'_{ncij} = x_{ncij}\,\bigl(1 - \mathbb 1[0 \le i - t_n < s]\,\mathbb 1[0 \le j - l_n < s]\bigr),
        \qquad (t_n, l_n) = (y_n, x_n) - \lfloor s/2 \rfloor

    Args:
        x: ``(samples, …, height, width)``, finite.
        centres: whole numbers ``(samples, 2)``: row and column of each square's centre.
        size: the square's side :math:`s` in pixels.
        hit: booleans ``(samples,)``: which images get a square, None for all.
        value: what the square holds.

    Example:
        >>> cutout(torch.ones(1, 3, 3), torch.tensor([[0, 1]]), 2).tolist()
        [[[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]
    """
    corners = centres - size // 2
    rows = _within(x.shape[-2], corners[:, :1], size)
    columns = _within(x.shape[-1], corners[:, 1:], size)
    if hit is not None:
        rows = rows & hit[:, None]
    if value or x.dtype == torch.bool:
        square = rows[:, :, None] & columns[:, None, :]
        return x.masked_fill(square.view(len(x), *[1] * (x.ndim - 3), *square.shape[1:]), value)
    # masked_fill is several times as slow where the mask is the same for all channels
    kept = 1 - rows.to(x.dtype)[:, :, None] * columns.to(x.dtype)[:, None, :]
    return x * kept.view(len(x), *[1] * (x.ndim - 3), *kept.shape[1:])


def brightness_contrast(x: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    r"""Change brightness and contrast of each image about its own mean :math:`\bar x_n`.

    .. math:: x'_n = (1 + c_n)(x_n - \bar x_n) + \bar x_n + b_n

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
    """Turn uniform draws ``(samples, 2)`` into pixels ``(samples, 2)``, row and column, all equally likely.

    Example:
        >>> random_centres(torch.tensor([[0.0, 0.99]]), 4, 10).tolist()
        [[0, 9]]
    """
    return (u * u.new_tensor([height, width])).long()


def _pixels(height: int, width: int, like: Tensor) -> Tensor:
    """Return the pixels in homogeneous coordinates ``(3, height * width)``: column, row, 1, from -1 to 1."""
    y, x = (torch.arange(1 - size, size, 2, device=like.device, dtype=like.dtype) / size for size in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones_like(x).repeat(height)])


def _rows(x: Tensor) -> NDArray[np.uint8]:
    """Return a contiguous tensor's bytes, one row per sample; NumPy copies rows twice as fast as torch."""
    rows: NDArray[np.uint8] = x.detach().view(len(x), -1).view(torch.uint8).numpy()
    return rows


def _over(values: Tensor, x: Tensor) -> Tensor:
    """Reshape one value per sample so that it broadcasts over ``x``."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _within(length: int, low: Tensor, size: int) -> Tensor:
    """Return for each sample a mask of the ``length`` positions that lie in ``[low, low + size)``."""
    offsets = torch.arange(length, device=low.device) - low
    return (offsets >= 0) & (offsets < size)
