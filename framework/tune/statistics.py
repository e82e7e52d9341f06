"""Statistics of paired differences: how large, how sure, and how many more seeds it would take."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy import stats

Key = TypeVar("Key", bound=Hashable)

_LEVEL = 0.05
_EXACT = 12  # pairs up to which all 2^n signs are tried
_RESAMPLES = 9999
_SEED = 0  # of the resampling: equal numbers give equal results


@dataclasses.dataclass(frozen=True)
class Comparison:
    r"""What paired differences say.

    Args:
        n: number of pairs.
        mean: mean difference :math:`\bar d`.
        middle: interquartile mean of the differences.
        low: lower end of the interval of the mean difference, nan if there are fewer than three pairs.
        high: upper end.
        p: two-sided p of the sign-flip permutation test, 1 if it cannot be computed.
        adjusted: p after Holm's correction over the table; p itself for a single comparison.
        better: share of pairs in which the first is better, ties counting half.
        needed: about how many pairs would tell the two apart, None if they are told apart or if no number would.
    """

    n: int
    mean: float
    middle: float
    low: float
    high: float
    p: float
    adjusted: float
    better: float
    needed: int | None

    @property
    def told_apart(self) -> bool:
        """Whether interval and corrected test agree that there is a difference."""
        outside = self.low > 0 or self.high < 0
        return bool(outside and self.adjusted <= _LEVEL)

    def verdict(self, *, higher_is_better: bool) -> str:
        """Return the claim in words: ``better``, ``worse``, or ``not told apart``.

        Args:
            higher_is_better: whether more of the compared figure is better.
        """
        if not self.told_apart:
            return "not told apart"
        return "better" if (self.mean > 0) == higher_is_better else "worse"

    @property
    def missing(self) -> int:
        """About how many more pairs it would take to tell the two apart, 0 if they are, or if no number would."""
        return max(1, self.needed - self.n) if self.needed is not None else 0


def mean_interval(differences: Sequence[float], level: float = 1 - _LEVEL) -> tuple[float, float]:
    """Return the BCa bootstrap interval of a mean (bias-corrected and accelerated).

    Args:
        differences: the values, at least three for an interval.
        level: coverage.

    Returns:
        Its ends; (nan, nan) for fewer than three values; the mean twice if all values are equal.

    Example:
        >>> mean_interval([2.0, 2.0, 2.0])
        (2.0, 2.0)

    Source: Efron (1987), Better bootstrap confidence intervals; computed by SciPy.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 3:
        return math.nan, math.nan
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of degenerate resamples
        found = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=level,
            n_resamples=_RESAMPLES,
            method="BCa",
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
    return float(found.low), float(found.high)


def sign_flip(differences: Sequence[float]) -> float:
    r"""Return the two-sided p of the sign-flip permutation test of a mean of zero.

    If the two of each pair came from one distribution, every sign of a difference would be as likely as the other:

    .. math:: p = 2^{-n} \, \#\Big\{ s \in \{-1, 1\}^n : \Big|\sum_i s_i d_i\Big| \ge \Big|\sum_i d_i\Big| \Big\},

    exactly for up to twelve pairs, by 9,999 random signs for more. With n pairs p is at least :math:`2^{1 - n}`, so
    that six are needed for p < 0.05.

    Args:
        differences: the paired differences.

    Example:
        >>> sign_flip([1.0, 2.0, 3.0])
        0.25

    Source: Fisher (1935), The design of experiments; computed by SciPy.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or not values.any():
        return 1.0
    if len(values) == 1:
        return 1.0
    found = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        n_resamples=np.inf if len(values) <= _EXACT else _RESAMPLES,
        rng=np.random.default_rng(_SEED),
    )
    return min(1.0, float(found.pvalue))


def holm(p: Sequence[float]) -> list[float]:
    r"""Return p-values after Holm's step-down correction, which bounds the chance of any false claim in a table.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min\big(1, (m - j + 1)\, p_{(j)}\big)

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(p)), key=lambda index: p[index])
    adjusted, highest = [1.0] * len(p), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def share_better(differences: Sequence[float], *, higher_is_better: bool) -> float:
    """Return the share of pairs in which the first is better; ties count half.

    Example:
        >>> share_better([1.0, -1.0, 0.0, 2.0], higher_is_better=True)
        0.625
    """
    sign = 1.0 if higher_is_better else -1.0
    return float(np.mean([0.5 if d == 0 else float(sign * d > 0) for d in differences]))


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half, each end of which counts by the share of it that lies inside.

    Example:
        >>> interquartile_mean([0.0, 1.0, 2.0, 3.0, 100.0])
        2.0

    Source: Agarwal et al. (2021), Deep reinforcement learning at the edge of the statistical precipice, where it is
    advised for few runs.
    """
    ordered, n = np.sort(np.asarray(values, dtype=np.float64)), len(values)
    edges = np.clip(np.minimum(np.arange(1, n + 1), 0.75 * n) - np.maximum(np.arange(n), 0.25 * n), 0.0, 1.0)
    return float((edges * ordered).sum() / edges.sum())


def pairs_needed(differences: Sequence[float], power: float = 0.8) -> int | None:
    r"""Return about how many pairs would tell a difference of this size apart from none.

    .. math:: n \approx \Big(\frac{(z_{1 - \alpha/2} + z_{1-\beta})\, s}{\bar d}\Big)^2, \qquad \alpha = 0.05,

    at least six, below which the sign-flip test cannot. None if the mean difference is zero.

    Args:
        differences: the paired differences so far.
        power: the chance to tell them apart, :math:`1 - \beta`.

    Source: the normal approximation of a paired test's power, as in Cohen (1988), Statistical power analysis.
    """
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean()) if len(values) else 0.0
    if mean == 0 or len(values) < 2:
        return None
    spread = float(values.std(ddof=1))
    z = float(stats.norm.ppf(1 - _LEVEL / 2) + stats.norm.ppf(power))
    needed = (z * spread / mean) ** 2
    return max(6, math.ceil(needed)) if needed < 1e6 else None


def compare_pairs(table: Mapping[Key, Sequence[float]], *, higher_is_better: bool) -> dict[Key, Comparison]:
    """Return for each row of a table what its paired differences say, p-values corrected over the table.

    Args:
        table: differences by row.
        higher_is_better: whether more of the compared figure is better.
    """
    p = {row: sign_flip(found) for row, found in table.items()}
    adjusted = dict(zip(p, holm(list(p.values())), strict=True))
    result = {}
    for row, found in table.items():
        low, high = mean_interval(found)
        mean = float(np.mean(found)) if len(found) else math.nan
        one = Comparison(
            len(found),
            mean,
            interquartile_mean(found) if len(found) else math.nan,
            low,
            high,
            p[row],
            adjusted[row],
            0.5,
            None,
        )
        better = share_better(found, higher_is_better=higher_is_better) if len(found) else 0.5
        needed = None if one.told_apart else pairs_needed(found)
        if needed is not None:  # where the correction, not the spread, is in the way
            needed = max(needed, len(found) + 1, math.ceil(1 + math.log2(len(table) / _LEVEL)))
        result[row] = dataclasses.replace(one, better=better, needed=needed)
    return result
