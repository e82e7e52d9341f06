"""The order of training samples in an epoch, and where it is cut into micro-batches."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from framework.data.labels import labels_of, per_sample
from framework.data.parts import Part, length_of
from framework.data.roles import Roles
from framework.errors import UserError
from framework.ops.keyed import Stream

_BUCKET = 1.05  # lengths within a factor of this are mixed: at most so much more padding


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    r"""Draws the samples of an epoch, as a function of run seed and epoch.

    Without weights every sample comes once, in random order. With weights w and replacement each place of the epoch
    holds sample n with probability :math:`w_n / \sum w`; without replacement the places are filled one after the other,
    each by one of the remaining samples with probability proportional to its weight.

    With groups, samples of nearly the same length share a micro-batch, and micro-batches come in random order.

    Args:
        length: number of samples of the part.
        weights: weight of each sample, ``(length,)``, None for equal ones.
        replacement: whether a sample may come several times in an epoch, for weights only.
        samples: samples per epoch, None for ``length``.
        groups: micro-batches by length, None for no grouping.

    Source: Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006 (without replacement).
    """

    length: int
    weights: Tensor | None = None
    replacement: bool = True
    samples: int | None = None
    groups: Groups | None = None

    @property
    def count(self) -> int:
        """Samples per epoch."""
        return self.length if self.samples is None else self.samples

    def __call__(self, stream: Stream, epoch: int) -> tuple[Tensor, list[int] | None]:
        """Return the indices of an epoch's samples, in order, ``(count,)``, and where micro-batches begin and end.

        Args:
            stream: keys the draws.
            epoch: the epoch.

        Returns:
            The indices, and ascending positions from 0 to ``count``; None in place of them for equal sizes.
        """
        generator = stream.torch(epoch)
        if self.groups is not None:
            return self._grouped(self.groups, generator)
        if self.weights is not None:
            return self._weighted(self.weights, generator), None
        if self.count == self.length:
            return torch.randperm(self.length, generator=generator), None
        rounds = -(-self.count // self.length)
        drawn = [torch.randperm(self.length, generator=generator) for _ in range(rounds)]
        return torch.cat(drawn)[: self.count], None

    def _weighted(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        if self.replacement:  # torch.multinomial takes at most 2^24 samples
            ends = weights.double().cumsum(0)
            draws = torch.rand(self.count, generator=generator, dtype=torch.float64) * ends[-1]
            return torch.searchsorted(ends, draws, right=True).clamp_(max=self.length - 1)
        draws = torch.rand(self.length, generator=generator, dtype=torch.float64)
        return torch.argsort(draws.log() / weights, descending=True)[: self.count]

    def _grouped(self, groups: Groups, generator: torch.Generator) -> tuple[Tensor, list[int]]:
        drawn = torch.randperm(self.length, generator=generator)
        ordered = drawn[torch.argsort(groups.buckets[drawn], stable=True)]
        batches = torch.split(ordered, groups.sizes)
        shuffled = [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]
        return torch.cat(shuffled), [0, *itertools.accumulate(map(len, shuffled))]


class Groups:
    """Micro-batches of samples of nearly the same length; their number and sizes are the same in every epoch.

    Args:
        lengths: length of each sample, such as its number of tokens, ``(N,)``.
        batch_size: samples per micro-batch, at most.
        tokens: upper bound of a micro-batch's samples times its longest sample, None for none.

    Attributes:
        buckets: index of each sample's range of lengths, each 5 % long, ``(N,)``.
        sizes: samples of each micro-batch, by length.

    Raises:
        UserError: if a sample is longer than ``tokens``.

    Example:
        >>> Groups(torch.tensor([9, 2, 2, 2, 9]), 4, 18).sizes
        [3, 2]
    """

    def __init__(self, lengths: Tensor, batch_size: int, tokens: int | None) -> None:
        if tokens is not None and int(lengths.max()) > tokens:
            row = int(lengths.argmax())
            raise UserError(f"Data(tokens={tokens}): training sample {row} alone has {int(lengths.max())}; give more")
        self.buckets = (lengths.double().clamp(min=1).log() / math.log(_BUCKET)).ceil().long()
        tops = {bucket: int(lengths[self.buckets == bucket].max()) for bucket in torch.unique(self.buckets).tolist()}
        self.sizes = [0]
        for bucket in self.buckets.sort().values.tolist():
            size = self.sizes[-1] + 1
            if size > batch_size or (tokens is not None and size * tops[bucket] > tokens):
                self.sizes.append(0)
            self.sizes[-1] += 1


def weights_of_classes(labels: Tensor) -> Tensor:
    """Return weights by which every class is drawn equally often: one over the size of each sample's class.

    Args:
        labels: class of each sample, ``(N,)``, of any values.

    Example:
        >>> weights_of_classes(torch.tensor([0, 0, 7])).tolist()
        [0.5, 0.5, 1.0]
    """
    places: Tensor
    counts: Tensor
    _, places, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    return counts.double().reciprocal()[places]


def order_of(part: Part, roles: Roles, batch_size: int, replacement: bool, given: Mapping[str, Any]) -> Order:
    """Return the order of training samples that arguments of ``Data`` ask for.

    Args:
        part: the training part.
        roles: where the target stands in a batch.
        batch_size: samples per micro-batch.
        replacement: whether weighted draws may repeat a sample.
        given: those of ``weights``, ``balance``, ``epoch_samples``, ``lengths`` and ``tokens`` that are not None.

    Raises:
        UserError: if they are wrong or cannot be combined.
    """
    names, length = " and ".join(given), length_of(part)
    if "tokens" in given and "lengths" not in given:
        raise UserError("Data(tokens=...): needs the length of each training sample: give Data(lengths=...)")
    if ("lengths" in given and set(given) - {"lengths", "tokens"}) or {"weights", "balance"} <= set(given):
        raise UserError(f"Data({names}=...): cannot be combined; leave one out")
    if "lengths" in given:
        lengths = per_sample("lengths", given["lengths"], length)
        return Order(length, groups=Groups(lengths, batch_size, given.get("tokens")))
    weights = None
    if "weights" in given:
        weights = per_sample("weights", given["weights"], length)
    if "balance" in given:
        weights = weights_of_classes(labels_of(part, given["balance"], roles, "Data(balance"))
    order = Order(length, weights, replacement, given.get("epoch_samples"))
    if weights is not None:
        above = int((weights > 0).sum())
        if above == 0 or (not replacement and above < order.count):
            raise UserError(f"Data({names}=...): {above} samples have a weight above 0, for {order.count} an epoch")
    return order
