"""Data whose parts are drawn from one set of samples: at random, or as the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from framework.data.labels import labels_of, per_sample
from framework.data.modules import is_datamodule
from framework.data.parts import Part, checked, is_ready, length_of, subset
from framework.data.roles import Roles
from framework.data.split import folds, split
from framework.errors import UserError

_NUMBERS = ("weights", "lengths")  # options of Data that are given per training sample
_EACH = (*_NUMBERS, "balance")


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
            **options: the other arguments of :class:`Data`; ``weights``, ``lengths`` and ``balance`` are given for
                all samples, and divided with them: those of the training part count.

        Raises:
            UserError: see :func:`framework.data.split.split`.

        Example:
            >>> import torch
            >>> from framework.data.data import Data
            >>> data = Data.split((torch.randn(10, 3), torch.zeros(10)), (0.8, 0.2), batch_size=4)
            >>> data.samples("train"), data.samples("val"), data.samples("test")
            (8, 2, None)
        """
        whole, classes, options = cls._whole(samples, stratify, options, "split")
        chosen = split(length_of(whole), fractions, stratify=classes, groups=groups, seed=seed)
        if len(chosen) > 3:
            raise UserError(
                f"Data.split(fractions=...): received {len(chosen)} shares; there are training, validation and test"
                " part only"
            )
        return cls(*(subset(whole, indices) for indices in chosen), **_chosen(options, chosen[0]))

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
            **options: the other arguments of :class:`Data`; ``weights``, ``lengths`` and ``balance`` are given for
                all samples, and divided with them: those of the training part count.

        Raises:
            UserError: see :func:`framework.data.split.folds`.
        """
        whole, classes, options = cls._whole(samples, stratify, options, "folds")
        chosen = folds(length_of(whole), k, stratify=classes, groups=groups, seed=seed)
        return [cls(subset(whole, rest), subset(whole, fold), **_chosen(options, rest)) for rest, fold in chosen]

    @classmethod
    def _whole(
        cls, samples: Any, stratify: Any, options: Mapping[str, Any], who: str
    ) -> tuple[Part, Any, dict[str, Any]]:
        """Return the samples, their classes, and the options with numbers and classes per sample as tensors."""
        if is_ready(samples) or isinstance(samples, IterableDataset) or is_datamodule(samples):
            raise UserError(
                f"Data.{who}: needs samples that can be counted and chosen; a {type(samples).__name__} only yields them"
            )
        whole = checked("train", samples, formats=options.get("collate") is None)
        roles, length = Roles(options.get("input"), options.get("target"), options.get("weight")), length_of(whole)
        each = {name: per_sample(name, options[name], length) for name in _NUMBERS if options.get(name) is not None}
        if not isinstance(options.get("balance"), str | None):
            each["balance"] = labels_of(whole, options["balance"], roles, "Data(balance")
        classes = labels_of(whole, stratify, roles, f"Data.{who}(stratify") if isinstance(stratify, str) else stratify
        return whole, classes, {**options, **each}


def _chosen(options: Mapping[str, Any], train: Any) -> dict[str, Any]:
    """Return the options with what is given per sample for the samples of the training part only."""
    rows = torch.as_tensor(train)
    own = {name: options[name][rows] for name in _EACH if isinstance(options.get(name), Tensor)}
    return {**options, **own}
