"""Words become normal and uniform numbers: what distribution they have, and that they are independent."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import hadamard

from framework.ops.keyed import Stream
from framework.ops.normals import UNIT, WORD, normal_points, normals_of, uniforms_of

LARGE = 1 << 22


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    return Stream(0, "sample").normals(7, size=LARGE).numpy().astype(np.float64)


def double_factorial(k: int) -> int:
    """Return E[z^k] of a standard normal variable."""
    return 0 if k % 2 else math.prod(range(1, k, 2))


# ---- what can be computed --------------------------------------------------------------------------------------------


def test_all_moments_of_the_points_up_to_order_seven_are_those_of_two_independent_normals():
    x, y = normal_points().T
    assert len(np.unique(normal_points(), axis=0)) == 256
    for a, b in itertools.product(range(8), repeat=2):
        if a + b <= 7:
            expected = double_factorial(a) * double_factorial(b)
            assert np.mean(x**a * y**b) == pytest.approx(expected, abs=1e-9), (a, b)


def distribution() -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a number and their distribution function: that of the sum of eight coordinates."""
    x = np.rint(normal_points()[:, 0] * 1390).astype(np.int64)
    high = int(np.abs(x).max())
    one = np.bincount(x + high, minlength=2 * high + 1) / len(x)
    length = 16 * high + 1
    eight = np.fft.irfft(np.fft.rfft(one, 1 << 18) ** 8, 1 << 18)[:length]
    return (np.arange(length) - 8 * high) / (8**0.5 * x.std()), np.cumsum(eight)


def test_the_distribution_function_is_near_the_normal_one_in_the_middle_and_in_the_tails():
    values, below = distribution()
    normal = stats.norm.cdf(values)
    assert np.abs(below - normal).max() < 5.5e-5
    assert np.abs(np.concatenate([[0], below[:-1]]) - normal).max() < 5.5e-5
    for point, tolerance in ((1, 0.001), (2, 0.002), (3, 0.003), (4, 0.005), (4.5, 0.015), (5, 0.04), (5.5, 0.1)):
        beyond = 1 - below[np.searchsorted(values, point)]
        assert beyond == pytest.approx(stats.norm.sf(point), rel=tolerance), point
    assert values[-1] > 8


def test_numbers_are_points_turned_by_a_hadamard_matrix():
    points = np.rint(normal_points() * 1390).astype(np.int64)
    words = np.random.default_rng(0).integers(0, 1 << 64, size=UNIT // WORD, dtype=np.uint64)
    chosen = words.view(np.uint8).reshape(4, UNIT // 16, 2)  # the unit's quarters, places in a quarter, two points
    eight = points[chosen[:, :, ::-1]].transpose(0, 2, 1, 3).reshape(8, UNIT // 16, 2)
    turned = np.tensordot(hadamard(8), eight, axes=1) / (8**0.5 * points.std())
    expected = turned.reshape(4, 2, UNIT // 16, 2).transpose(0, 2, 1, 3).ravel()
    np.testing.assert_allclose(normals_of(words).numpy(), expected, rtol=1e-6)


def test_numbers_of_one_place_are_those_that_all_words_would_give():
    stream = Stream(3, "a")
    whole = stream.normals(1, 2, size=5 * UNIT)
    assert torch.equal(whole, normals_of(stream.words(1, 2, count=5 * UNIT // WORD)))
    for start, size in ((0, 1), (3, 700), (UNIT, UNIT), (UNIT - 1, 2), (2000, 560), (4 * UNIT, UNIT), (17, 0)):
        assert torch.equal(stream.normals(1, 2, start=start, size=size), whole[start : start + size])
    for dtype in (torch.float32, torch.float64):
        whole = stream.uniforms(1, 2, size=999, dtype=dtype)
        for start, size in ((0, 1), (3, 700), (998, 1), (0, 0)):
            assert torch.equal(stream.uniforms(1, 2, start=start, size=size, dtype=dtype), whole[start : start + size])


def test_more_numbers_than_one_pass_makes_are_the_same_numbers():
    words = np.random.PCG64DXSM(1).random_raw(3 * (1 << 13) + UNIT // WORD)
    parts = [normals_of(words[low : low + (1 << 12)]) for low in range(0, len(words), 1 << 12)]
    assert torch.equal(normals_of(words), torch.cat(parts))


def test_threads_change_no_number():
    one = Stream(0, "a").normals(1, size=300_000)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 3)
    try:
        assert torch.equal(Stream(0, "a").normals(1, size=300_000), one)
    finally:
        torch.set_num_threads(threads)


def test_uniforms_by_hand():
    words = np.array([0x0123_4567_FFFF_FFFF], dtype=np.uint64)
    assert uniforms_of(words).tolist() == [1 - 2.0**-24, 0x012345 * 2.0**-24]
    assert uniforms_of(words, torch.float64).tolist() == [(0x0123_4567_FFFF_FFFF >> 11) * 2.0**-53]


# ---- what is seen in a sample -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", range(1, 9))
def test_moments_of_a_sample(sample: np.ndarray, order: int):
    spread = math.sqrt(double_factorial(2 * order) - double_factorial(order) ** 2)
    assert abs(np.mean(sample**order) - double_factorial(order)) < 4 * spread / math.sqrt(LARGE)


def test_a_sample_passes_kolmogorovs_test(sample: np.ndarray):
    assert stats.kstest(sample, "norm").pvalue > 0.001
    uniform = Stream(0, "sample").uniforms(7, size=LARGE).numpy()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert stats.kstest(uniform, "uniform").pvalue > 0.001


def test_tails_of_a_sample_hold_as_many_as_they_should(sample: np.ndarray):
    for point in (3.0, 3.5, 4.0, 4.5):
        assert stats.binomtest(int((np.abs(sample) > point).sum()), LARGE, 2 * stats.norm.sf(point)).pvalue > 0.001


def test_numbers_and_their_squares_are_uncorrelated_at_all_places_of_a_unit(sample: np.ndarray):
    units = sample.reshape(-1, UNIT)
    bound = 5 / math.sqrt(len(units))  # some 260,000 correlations: five standard deviations
    for values in (units, units**2, np.sign(units) * units**2):
        correlations = np.corrcoef(values.T)
        np.fill_diagonal(correlations, 0)
        assert np.abs(correlations).max() < 1.15 * bound


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 128, 255, 256, 257, 511, 512, 4096])
def test_numbers_are_uncorrelated_at_a_lag(sample: np.ndarray, lag: int):
    for values in (sample, np.abs(sample) - np.abs(sample).mean()):
        size = (values[lag:] * values[:-lag]).mean() / values.var()
        assert abs(size) < 4 / math.sqrt(LARGE)


@pytest.mark.parametrize("b", [1, 2, 3, 4, 8, *range(128, 132), *range(256, 260), *range(384, 388)])
def test_numbers_of_the_same_eight_points_fill_the_plane_as_independent_ones(sample: np.ndarray, b: int):
    # the first number of each group of four in a quarter of a unit, with one that shares its points or does not
    units = sample.reshape(-1, UNIT)
    x, y = units[:, :124:4].ravel(), units[:, b : b + 124 : 4].ravel()
    cells = [np.floor(stats.norm.cdf(z) * 16).astype(int) for z in (x, y)]
    counts = np.bincount(cells[0] * 16 + cells[1], minlength=256)
    assert stats.chisquare(counts).pvalue > 0.0005


def test_neighbouring_places_and_other_streams_are_independent():
    size = 1 << 18
    draws = [Stream(0, "a").normals(step, size=size) for step in range(6)]
    draws += [Stream(0, "a").normals(0, micro, rank, size=size) for micro in (0, 1) for rank in (0, 1)]
    draws += [Stream(0, "b").normals(0, size=size), Stream(1, "a").normals(0, size=size)]
    for values in (torch.stack(draws), torch.stack(draws).square()):
        correlations = torch.corrcoef(values).fill_diagonal_(0)
        assert correlations.abs().max() < 5 / math.sqrt(size)


def test_threads_do_not_disturb_one_another():
    def draw(place):
        return Stream(0, "a").normals(place, size=1 << 18)

    expected = [draw(place) for place in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(draw, [*range(8)] * 4))
    assert all(torch.equal(one, expected[place % 8]) for place, one in enumerate(found))


def test_a_weight_gets_normal_noise_over_steps():
    stream = Stream(0, "a")
    over_steps = torch.stack([stream.normals(step, size=UNIT) for step in range(2000)]).numpy()
    pvalues = [stats.kstest(over_steps[:, place], "norm").pvalue for place in range(0, UNIT, 8)]
    assert stats.kstest(pvalues, "uniform").pvalue > 0.001
    for lag in (1, 2, 7):
        assert abs((over_steps[lag:] * over_steps[:-lag]).mean()) < 4 / math.sqrt(over_steps[lag:].size)
