"""Each figure against hand-computed values and an independent way; few false claims, power for a true difference."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from framework.tune.statistics import (
    compare_pairs,
    holm,
    interquartile_mean,
    mean_interval,
    pairs_needed,
    share_better,
    sign_flip,
)


def test_sign_flip_is_the_count_over_all_signs() -> None:
    d = [0.3, -0.1, 0.7, 0.2, 0.05]
    sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((-1, 1), repeat=5)]
    by_hand = np.mean([one >= abs(sum(d)) - 1e-12 for one in sums])
    assert sign_flip(d) == pytest.approx(by_hand)
    assert sign_flip([1.0, 1.1, 0.9, 1.2, 1.3]) == pytest.approx(2 / 32)  # five pairs: never below 0.05
    assert sign_flip([1.0, 1.1, 0.9, 1.2, 1.3, 1.0]) == pytest.approx(2 / 64)


@pytest.mark.parametrize("d", [[], [0.0, 0.0, 0.0], [5.0]])
def test_nothing_can_be_said(d: list[float]) -> None:
    assert sign_flip(d) == 1.0


def test_many_pairs_agree_with_the_t_test() -> None:
    d = np.random.default_rng(1).normal(0.2, 1.0, 60)
    assert sign_flip(list(d)) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)


def test_the_interval_agrees_with_the_t_interval_and_covers() -> None:
    d = np.random.default_rng(2).normal(1.0, 0.5, 40)
    low, high = mean_interval(list(d))
    expected = stats.t.interval(0.95, 39, d.mean(), stats.sem(d))
    assert (low, high) == pytest.approx(expected, abs=0.05)
    assert mean_interval([1.0, 2.0]) == pytest.approx((math.nan, math.nan), nan_ok=True)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_interquartile_mean_agrees_with_trimming() -> None:
    values = list(np.random.default_rng(3).normal(size=16))
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))
    assert interquartile_mean([1.0, 2.0, 6.0]) == pytest.approx((0.25 * 1 + 2 + 0.25 * 6) / 1.5)
    assert interquartile_mean([7.0]) == 7.0


def test_share_better() -> None:
    assert share_better([-1.0, -2.0, 1.0], higher_is_better=False) == pytest.approx(2 / 3)


def test_pairs_needed_give_that_power() -> None:
    draw = np.random.default_rng(4)
    d = draw.normal(0.5, 1.0, 2000)
    n = pairs_needed(list(d))
    assert n == pytest.approx(32, abs=6)
    found = np.mean([sign_flip(list(draw.normal(d.mean(), d.std(), n))) < 0.05 for _ in range(100)])
    assert 0.65 < found < 0.95
    assert pairs_needed([1.0, -1.0]) is None
    assert pairs_needed([1.0, 1.001, 1.002]) == 6


def test_a_claim_needs_interval_and_corrected_test() -> None:
    clear = [0.10, 0.12, 0.09, 0.11, 0.13, 0.10, 0.12, 0.11]
    rows = {"clear": clear, "none": [0.1, -0.1, 0.05, -0.06, 0.02, -0.01, 0.03, -0.04]}
    found = compare_pairs(rows, higher_is_better=True)
    assert found["clear"].told_apart
    assert (found["clear"].verdict(higher_is_better=True), found["clear"].missing) == ("better", 0)
    assert found["clear"].verdict(higher_is_better=False) == "worse"
    assert found["clear"].better == 1.0
    assert "not told apart" in found["none"].verdict(higher_is_better=True)
    five = compare_pairs({"few": clear[:5]}, higher_is_better=True)["few"]
    assert not five.told_apart
    assert (five.verdict(higher_is_better=True), five.missing) == ("not told apart", 1)
    many = compare_pairs({str(i): clear for i in range(20)}, higher_is_better=True)  # the same, in a table of twenty
    assert not many["0"].told_apart
    assert many["0"].needed == 10


@pytest.mark.parametrize("n", [6, 8, 12])
def test_at_most_five_in_a_hundred_false_claims(n: int) -> None:
    draw = np.random.default_rng(n)
    claims = [
        compare_pairs({"a": draw.standard_t(4, n).tolist()}, higher_is_better=True)["a"].told_apart for _ in range(300)
    ]
    assert np.mean(claims) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)
