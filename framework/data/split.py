"""Divide samples into parts and folds: at random, by class, or by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    train_test_split,
)
from torch import Tensor

from framework.errors import UserError, brief
from framework.settings import as_python

Indices = np.ndarray


def split(
    length: int,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    *,
    stratify: Any = None,
    groups: Any = None,
    seed: int = 0,
) -> list[Indices]:
    """Divide ``length`` samples at random into disjoint parts of given sizes.

    Args:
        length: number of samples.
        fractions: the parts' shares of the samples, above 0, with a sum of 1.
        stratify: class of each sample, ``(length,)``: each part gets nearly the same share of every class.
        groups: group of each sample, ``(length,)``: all samples of a group, such as one patient's, go to one part. The
            fractions are then of groups; with ``stratify`` as well, both hold only nearly.
        seed: random seed.

    Returns:
        The indices of each part's samples, an integer array per fraction, shuffled.

    Raises:
        UserError: if the fractions are wrong, or a part or class has too few samples.

    Example:
        >>> train, val, test = split(10, (0.6, 0.2, 0.2))
        >>> len(train), len(val), len(test)
        (6, 2, 2)

    Source: scikit-learn's ``train_test_split``, ``GroupShuffleSplit`` and ``StratifiedGroupKFold``.
    """
    try:
        shares = [float(one) for one in fractions]
    except (TypeError, ValueError):
        shares = []
    if len(shares) < 2 or min(shares) <= 0 or not abs(sum(shares) - 1) <= 1e-6:
        raise UserError(f"split(fractions={brief(fractions)}): must be two or more numbers above 0 with a sum of 1")
    classes, of_groups = _labels("stratify", stratify, length), _labels("groups", groups, length)
    rest, parts = np.arange(length), []
    for place in range(len(shares) - 1, 0, -1):
        share = shares[place] / sum(shares[: place + 1])
        rest, part = _cut(rest, round(share, 12), classes, of_groups, seed)
        parts.append(part)
    return [rest, *reversed(parts)]


def folds(
    length: int, k: int, *, stratify: Any = None, groups: Any = None, seed: int = 0
) -> list[tuple[Indices, Indices]]:
    """Divide ``length`` samples at random into ``k`` folds of nearly equal size, for cross-validation.

    Args:
        length: number of samples.
        k: number of folds, 2 or more.
        stratify: class of each sample, ``(length,)``: each fold gets nearly the same share of every class.
        groups: group of each sample, ``(length,)``: all samples of a group go to one fold.
        seed: random seed.

    Returns:
        For each fold the indices of the samples outside of it and of those in it, ascending.

    Raises:
        UserError: if there are fewer samples, samples of a class, or groups, than folds.

    Example:
        >>> [fold.tolist() for _, fold in folds(5, 2)]
        [[0, 1, 2], [3, 4]]

    Source: scikit-learn's ``KFold``, ``StratifiedKFold``, ``GroupKFold`` and ``StratifiedGroupKFold``.
    """
    k = as_python(k)
    if not isinstance(k, int) or isinstance(k, bool) or k < 2:
        raise UserError(f"folds(k={brief(k)}): must be a whole number of 2 or more")
    classes, of_groups = _labels("stratify", stratify, length), _labels("groups", groups, length)
    if of_groups is None:
        kind = KFold if classes is None else StratifiedKFold
        least = length if classes is None else int(np.unique(classes, return_counts=True)[1].min())
    else:
        kind = GroupKFold if classes is None else StratifiedGroupKFold
        least = len(np.unique(of_groups))
    if least < k:
        what = "groups" if of_groups is not None else "samples" if classes is None else "samples of the smallest class"
        raise UserError(f"folds(k={k}): there are {least} {what}; use fewer folds")
    made = kind(n_splits=k, shuffle=True, random_state=seed)
    return [(rest, fold) for rest, fold in made.split(np.zeros(length), classes, of_groups)]


def parts(
    length: int, *, fold: int | None = None, k: int = 5, stratify: Any = None, groups: Any = None, seed: int = 0
) -> list[Indices]:
    """Divide ``length`` samples into training, validation and test part: 60 %, 20 % and 20 %, or by folds.

    For a recipe with parameters ``split`` (this seed) and ``fold``: with a fold, the test part stays, and of the rest
    the given one of ``k`` folds validates.

    Args:
        length: number of samples.
        fold: number of the fold that validates, None for the split by shares.
        k: number of folds.
        stratify: class of each sample, as for :func:`split`.
        groups: group of each sample, as for :func:`split`.
        seed: random seed.

    Returns:
        The indices of the three parts' samples.

    Raises:
        UserError: if there is no such fold, or as :func:`split` and :func:`folds` do.

    Example:
        >>> [len(part) for part in parts(50)], [len(part) for part in parts(50, fold=4)]
        ([30, 10, 10], [32, 8, 10])
    """
    train, val, test = split(length, stratify=stratify, groups=groups, seed=seed)
    if fold is None:
        return [train, val, test]
    if not isinstance(fold, int) or isinstance(fold, bool) or not 0 <= fold < k:
        raise UserError(f"fold={brief(fold)}: must be a whole number from 0 to {k - 1}")
    rest = np.sort(np.concatenate([train, val]))
    labels, of = (None if one is None else np.asarray(one)[rest] for one in (stratify, groups))
    outside, inside = folds(len(rest), k, stratify=labels, groups=of, seed=seed)[fold]
    return [rest[outside], rest[inside], test]


def _labels(name: str, given: Any, length: int) -> np.ndarray | None:
    if given is None:
        return None
    labels = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
    if labels.ndim != 1 or len(labels) != length:
        raise UserError(f"{name}=...: must be one label per sample, ({length},); received shape {labels.shape}")
    return labels


def _cut(
    samples: Indices, share: float, classes: np.ndarray | None, groups: np.ndarray | None, seed: int
) -> tuple[Indices, Indices]:
    """Cut a share of the samples off, and return the rest and the share."""
    inside = None if classes is None else classes[samples]
    try:
        if groups is None:
            rest, part = train_test_split(samples, test_size=share, stratify=inside, random_state=seed)
            return rest, part
        of = groups[samples]
        if inside is None:
            one = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
        else:
            one = StratifiedGroupKFold(n_splits=max(2, round(1 / share)), shuffle=True, random_state=seed)
        first, second = next(iter(one.split(samples, inside, of)))
    except ValueError as error:
        raise UserError(f"split: {len(samples)} samples cannot be divided so: {error}") from error
    return samples[first], samples[second]
