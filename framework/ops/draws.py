"""Draws per sample that consumers such as plugins take from the step at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor

from framework.errors import UserError
from framework.ops.keyed import Kind
from framework.ops.noise import additive, masked, multiplicative
from framework.settings import Bounds

NoiseKind = Literal["gaussian", "multiplicative", "masking"]
Rate = Annotated[float, Bounds(low=0, high=1, open_high=True)]


class Consumer(Protocol):
    """An object that draws random numbers, such as a plugin; its name keys them."""

    name: str


class Source(Protocol):
    """An object that random numbers are drawn from: :class:`framework.plugin.Step`, which documents the methods."""

    @property
    def plugins(self) -> Mapping[str, Any]:
        """The consumers by name."""

    def uniform(self, plugin: Any, like: Tensor, who: str = "") -> Tensor:
        """Return draws from [0, 1) shaped like ``like``, whose first dimension runs over samples."""

    def normal(self, plugin: Any, like: Tensor, who: str = "") -> Tensor:
        """Return standard normal draws shaped like ``like``, whose first dimension runs over samples."""

    def rows(self, kind: Kind, name: str, like: Tensor, who: str) -> Tensor:
        """Return the draws of the consumer called ``name``."""


class Draws:
    """The draws of one transform in one micro-batch: a row a sample, whichever way the step's batch is split.

    Args:
        step: the step at hand.
        plugin: who draws.
        who: tells the transforms of one plugin apart.
    """

    def __init__(self, step: Source, plugin: Consumer, who: str = "") -> None:
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


def disturbed(
    x: Tensor,
    kind: NoiseKind,
    std: float | Tensor | None,
    rate: float | Tensor | None,
    *,
    plugin: Consumer,
    step: Source,
    who: str = "",
    rescale: bool = False,
) -> Tensor:
    """Return ``x`` with noise drawn for each sample of the step; without noise ``x`` itself, and nothing is drawn.

    Args:
        x: floating-point tensor ``(samples, …)``.
        kind: :func:`additive` (``"gaussian"``), :func:`multiplicative` or :func:`masked` (``"masking"``).
        std: standard deviation of the first two kinds; a tensor where a compiled network reads it.
        rate: the probability of the third; likewise.
        plugin: who draws.
        step: the step at hand.
        who: tells several draws of one plugin in one step apart, such as a layer's name.
        rescale: keep the mean under masking.
    """
    if kind == "masking":
        if rate is None or _is_zero(rate):
            return x
        # not like x: rounded to half precision, a uniform draw falls below the rate with another probability
        uniform = step.uniform(plugin, torch.empty_like(x, dtype=torch.float32), who)
        return masked(x, rate, uniform, rescale=rescale)
    if std is None or _is_zero(std):
        return x
    noise = step.normal(plugin, x, who)
    return additive(x, std, noise) if kind == "gaussian" else multiplicative(x, std, noise)


def _is_zero(strength: float | Tensor) -> bool:
    return not isinstance(strength, Tensor) and not strength  # to look into a tensor would break a compiled graph


def check_rate(who: str, kind: NoiseKind, rate: float | None) -> None:
    """Refuse masking without a rate, and a rate without masking.

    Raises:
        UserError: naming class, arguments and what to do.
    """
    if kind == "masking" and rate is None:
        raise UserError(f"{who}(kind='masking', rate=None): give rate=, the probability of an entry to become 0")
    if kind != "masking" and rate is not None:
        raise UserError(f"{who}(kind={kind!r}, rate={rate!r}): rate belongs to kind='masking'; use std= or change kind")
