r"""Normal and uniform numbers from random words: on a CPU several times as fast as torch's own generator.

Each random byte selects one of 256 points of the plane, a discrete substitute for two independent normal numbers: all
moments up to order seven are those of the normal distribution (:func:`normal_points`). Eight points are then mixed by a
Hadamard matrix, so that each number is a sum of eight independent ones: its distribution function is within 0.00005 of
the normal one, with tails up to 8 standard deviations. As the mixing is orthogonal, all joint moments of the numbers up
to order seven are those of independent normals. Numbers are multiples of some 0.00025.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]

UNIT = 512
"""Normal numbers that are generated together: any range of whole units can be generated without the others."""

WORD = 16
"""Normal numbers per random word of 64 bits."""

_BLOCK = 1 << 17  # numbers per pass, so that its working memory fits into the processor's cache
_SCALE = 1390.0  # eight points of at most 2.93 fit into 16 bits


def _moment_errors(squares: NDArray[np.float64], angles: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    r"""Return the relative errors of all moments up to order seven against the normal distribution, and their Jacobian.

    .. math:: \frac{\operatorname{mean}_k\, r_k^{2j}\cos4m\theta_k}{2^j j!} - \mathbb 1[m = 0],
        \qquad j = 1, 2, 3, \quad 2m \le j

    For points with the symmetries of a square these moments suffice, since the others vanish.
    """
    errors, slopes = [], []
    for j in (1, 2, 3):
        expected = 2.0**j * math.factorial(j)
        for m in range(j // 2 + 1):
            wave = np.cos(4 * m * angles)
            errors.append((squares**j * wave).mean() / expected - (m == 0))
            by_square = j * squares ** (j - 1) * wave
            by_angle = -4.0 * m * squares**j * np.sin(4 * m * angles)
            slopes.append(np.concatenate([by_square, by_angle]) / (len(squares) * expected))
    return np.array(errors), np.array(slopes)


@functools.cache
def normal_points() -> NDArray[np.float64]:
    r"""Return 256 equally likely points ``(256, 2)`` that approximate two independent standard normal numbers.

    All moments :math:`\mathbb E\,x^a y^b` with :math:`a + b \le 7` are those of the normal distribution. Box and
    Muller's transform of a lattice,

    .. math::
        r_k^2 = n\int_{k/n}^{(k+1)/n} -2\ln u\,\mathrm du, \qquad
        \theta_k = \tfrac\pi4\bigl\{(k + \tfrac12)\varphi\bigr\}, \qquad k < n = 32

    with :math:`\varphi` the golden ratio, is corrected by Newton's method until the moments are exact (least squares,
    so that the points move little), mirrored at the diagonal and rotated by 90, 180 and 270 degrees.

    Source: Box and Muller (1958), A note on the generation of random normal deviates; for sets of equally likely points
    with given moments Hardin and Sloane (1996), McLaren's improved snub cube and other new spherical designs.
    """
    n = 32
    k = np.arange(n + 1, dtype=np.float64)
    u = k / n
    integral = u * (1.0 - np.log(np.where(u > 0.0, u, 1.0)))  # of -ln u, from 0
    squares = 2.0 * n * np.diff(integral)
    angles = np.pi / 4.0 * np.mod((k[:-1] + 0.5) * ((5.0**0.5 - 1.0) / 2.0), 1.0)
    # large radii determine the high moments and are moved most; the smallest could turn negative
    reach = np.concatenate([np.minimum(squares, 4.0) ** 2, np.ones(n)])
    for _ in range(10):
        errors, slopes = _moment_errors(squares, angles)
        step = reach * np.linalg.lstsq(slopes * reach, errors, rcond=None)[0]
        squares, angles = squares - step[:n], angles - step[n:]
    eighth = np.sqrt(squares) * np.exp(1j * angles)
    quarter = np.concatenate([eighth, 1j * eighth.conj()])
    whole = np.concatenate([quarter, 1j * quarter, -quarter, -1j * quarter])
    return np.stack([whole.real, whole.imag], axis=1)


@functools.cache
def _table() -> tuple[Tensor, float]:
    """Return the sums and differences of all pairs of points, and the factor that scales results to variance 1.

    An entry packs four numbers of 16 bits into 8 bytes, since torch gathers single entries fastest.
    """
    points = np.rint(normal_points() * _SCALE).astype(np.int16)
    first, second = np.repeat(points, 256, axis=0), np.tile(points, (256, 1))
    table = np.ascontiguousarray(np.concatenate([first + second, first - second], axis=1))
    with torch.inference_mode(False):
        return torch.from_numpy(table.view(np.float64).ravel()), 8.0**-0.5 / points.std(dtype=np.float64).item()


def normals_of(words: Words) -> Tensor:
    r"""Return ``16 * len(words)`` independent draws from :math:`\mathcal N(0, 1)` in float32.

    With :math:`p_1, \dots, p_8` the points that eight bytes select, the numbers are the coordinates of
    :math:`\sum_j H_{ij}\,p_j / \sqrt 8` for the rows of the Hadamard matrix :math:`H` of order eight.

    Args:
        words: independent random words; their number is a multiple of 32, which makes whole units.
    """
    numbers = torch.empty(len(words) * WORD, dtype=torch.float32, device="cpu")
    size = _BLOCK // WORD
    for low in range(0, len(words), size):
        _fill(numbers[low * WORD : (low + size) * WORD], words[low : low + size])
    return numbers


def _halves(sums: Tensor) -> list[tuple[Tensor, ...]]:
    """Return the pairs of operands of the remaining butterfly stages of the Hadamard transform."""
    return [sums.view(-1, 2, width).unbind(1) for width in (UNIT // 2, UNIT // 4)]


class _Scratch(threading.local):
    """Working memory of one block, per thread and reused, so that half of it stays in the cache."""

    def __init__(self) -> None:
        count = _BLOCK // 4
        self.places = np.empty(count, dtype=np.int32)
        with torch.inference_mode(False):
            self.indices = torch.from_numpy(self.places)
            self.entries = torch.empty(count, dtype=torch.float64, device="cpu")
            self.sums = self.entries.view(torch.int16)
            self.halves = _halves(self.sums)


_scratch = _Scratch()


def _fill(numbers: Tensor, words: Words) -> None:
    table, unit = _table()
    # integers of 16 bits take half the time of float32, and are exact
    if len(words) * WORD == _BLOCK:
        np.copyto(_scratch.places, words.view(np.uint16))
        torch.index_select(table, 0, _scratch.indices, out=_scratch.entries)
        sums, halves = _scratch.sums, _scratch.halves
    else:
        places = torch.from_numpy(words.view(np.uint16).astype(np.int32))
        sums = torch.index_select(table, 0, places).view(torch.int16)
        halves = _halves(sums)
    for first, second in halves:
        first.add_(second)
        torch.add(first, second, alpha=-2, out=second)
    numbers.copy_(sums).mul_(unit)


def uniforms_of(words: Words, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""Return independent draws from [0, 1): multiples of :math:`2^{-24}` in float32, of :math:`2^{-53}` in float64.

    Args:
        words: independent random words.
        dtype: float32, two numbers per word, or float64, one number per word.
    """
    numbers: NDArray[Any]
    if dtype == torch.float64:
        numbers = (words >> np.uint64(11)).view(np.int64).astype(np.float64)
        numbers *= 2.0**-53
    else:
        numbers = (words.view(np.uint32) >> np.uint32(8)).view(np.int32).astype(np.float32)
        numbers *= np.float32(2.0**-24)
    return torch.from_numpy(numbers)
