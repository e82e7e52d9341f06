"""Data whose parts are drawn from one set of samples: at random, or as the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from framework.data.order import labels_of
from framework.data.parts import Part, checked, is_ready, length_of, subset
from framework.data.roles import Roles
from framework.data.split import folds, split
from framework.errors import UserError


class Splits:
    """The constructors of :class:`framework.Data` that divide one set of samples."""

    if TYPE_CHECKING:

        def __init__(self, *parts: Any, **options: Any) -> None: ...

    @classmethod
    def split(
        cls,
        samples: Any,
        fractions: Sequence[float] = (0.6, 0.2, 0.2),
        *,
        stratify: Any = None,
        groups: Any = None,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Return data whose parts are drawn at random from one set of samples.

        Args:
            samples: tensors or a map-style data set, as a part.
            fractions: shares of training and validation part, or of training, validation and test part.
            stratify: ``"class"``, or the class of each sample: each part gets nearly the same share of every class.
            groups: group of each sample, all samples of which go to one part.
            seed: random seed of the split, apart from the run's.
            **options: the other arguments of :class:`Data`.

        Raises:
            UserError: see :func:`framework.data.split.split`.

        Example:
            >>> import torch
            >>> from framework.data.data import Data
            >>> data = Data.split((torch.randn(10, 3), torch.zeros(10)), (0.8, 0.2), batch_size=4)
            >>> data.samples("train"), data.samples("val"), data.samples("test")
            (8, 2, None)
        """
        whole, classes = cls._whole(samples, stratify, options)
        chosen = split(length_of(whole), fractions, stratify=classes, groups=groups, seed=seed)
        if len(chosen) > 3:
            raise UserError(f"Data.split(fractions={fractions!r}): there are training, validation and test part only")
        return cls(*(subset(whole, indices) for indices in chosen), **options)

    @classmethod
    def folds(
        cls, samples: Any, k: int, *, stratify: Any = None, groups: Any = None, seed: int = 0, **options: Any
    ) -> list[Self]:
        """Return data for each round of a k-fold cross-validation: the fold is the validation part.

        A recipe takes one of them by a parameter: ``def recipe(fold: int = 0): ... Data.folds((x, y), 5)[fold]``.

        Args:
            samples: tensors or a map-style data set, as a part.
            k: number of folds.
            stratify: ``"class"``, or the class of each sample: each fold gets nearly the same share of every class.
            groups: group of each sample, all samples of which go to one fold.
            seed: random seed of the folds, apart from the run's.
            **options: the other arguments of :class:`Data`.

        Raises:
            UserError: see :func:`framework.data.split.folds`.
        """
        whole, classes = cls._whole(samples, stratify, options)
        chosen = folds(length_of(whole), k, stratify=classes, groups=groups, seed=seed)
        return [cls(subset(whole, rest), subset(whole, fold), **options) for rest, fold in chosen]

    @classmethod
    def _whole(cls, samples: Any, stratify: Any, options: Mapping[str, Any]) -> tuple[Part, Any]:
        whole = checked("train", samples, formats=options.get("collate") is None)
        if is_ready(whole):
            raise UserError(f"Data.split, Data.folds: need samples; a {type(samples).__name__} yields batches")
        roles = Roles(options.get("input"), options.get("target"), options.get("weight"))
        return whole, labels_of(whole, stratify, roles) if isinstance(stratify, str) else stratify
