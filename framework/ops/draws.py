"""Random draws per sample, taken from the current step by consumers such as plugins."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from framework.errors import UserError
from framework.ops.keyed import Kind
from framework.ops.noise import additive, masked, multiplicative
from framework.settings import Bounds

NoiseKind = Literal["gaussian", "multiplicative", "masking"]
Rate = Annotated[float, Bounds(low=0, high=1, open_high=True)]


class Consumer(Protocol):
    """Anything that draws random numbers, such as a plugin; its name is part of their key."""

    name: str


class Source(Protocol):
    """The source of the draws: what :class:`framework.plugin.Step` provides, which documents the methods."""

    @property
    def plugins(self) -> Mapping[str, Any]:
        """The consumers by name."""

    def uniform(self, plugin: Consumer, like: Tensor, who: str = "") -> Tensor:
        """Return draws from [0, 1) shaped like ``like``, whose first dimension runs over samples."""

    def normal(self, plugin: Consumer, like: Tensor, who: str = "") -> Tensor:
        """Return standard normal draws shaped like ``like``, whose first dimension runs over samples."""

    def rows(self, kind: Kind, name: str, like: Tensor, who: str) -> Tensor:
        """Return the draws of the consumer called ``name``."""


class Draws:
    """The draws of one transform in one micro-batch: one row per sample, however the step's batch is split.

    Args:
        step: the current step.
        plugin: the consumer of the draws.
        who: distinguishes several transforms of one plugin.
    """

    def __init__(self, step: Source, plugin: Consumer, who: str = "") -> None:
        self._step, self._plugin, self._who = step, plugin, who
        self._asked = 0

    def uniform(self, x: Tensor, numbers: int) -> Tensor:
        """Return ``(samples, numbers)`` draws from [0, 1) in float32, for the samples of ``x``."""
        like = torch.empty(len(x), numbers, device=x.device, dtype=torch.float32)
        return self._step.uniform(self._plugin, like, self._next())

    def normal(self, x: Tensor) -> Tensor:
        r"""Return draws from :math:`\mathcal N(0, 1)` with the shape and type of ``x``, which is floating-point."""
        check_floating(x, f"normal draws of {self._plugin.name}")
        return self._step.normal(self._plugin, x, self._next())

    def _next(self) -> str:
        self._asked += 1
        return f"{self._who}/{self._asked}"


@contextlib.contextmanager
def keyed_globals(key: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python inside the context, and restore their states after it.

    Args:
        key: a seed of 63 bits; equal keys give equal draws.
        device: an accelerator whose generator is seeded as well.

    Example:
        >>> with keyed_globals(5):
        ...     a = torch.rand(1), np.random.rand(), random.random()
        >>> with keyed_globals(5):
        ...     a == (torch.rand(1), np.random.rand(), random.random())
        True
    """
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - the state that callables share
    for generator in generators:
        generator.manual_seed(key)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002
    random.seed(key)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def check_floating(x: Tensor, who: str) -> None:
    """Check that a tensor holds floating-point numbers.

    Args:
        x: the tensor.
        who: what the error names.

    Raises:
        UserError: if it holds anything else.
    """
    if not x.is_floating_point():
        raise UserError(f"{who}: needs floating-point numbers, received {x.dtype}; convert them in the data set")


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
    """Return ``x`` with noise drawn for each sample; at strength zero nothing is drawn and ``x`` itself is returned.

    Args:
        x: floating-point tensor ``(samples, …)``.
        kind: :func:`additive` (``"gaussian"``), :func:`multiplicative` or :func:`masked` (``"masking"``).
        std: standard deviation of the first two kinds; a tensor inside a compiled network.
        rate: masking probability of the third kind; a tensor inside a compiled network.
        plugin: the consumer of the draws.
        step: the current step.
        who: distinguishes several draws of one plugin in one step, such as a layer's name.
        rescale: preserve the mean under masking.
    """
    if kind == "masking":
        if rate is None or _is_zero(rate):
            return x
        # in float32: a uniform draw rounded to half precision falls below the rate with another probability
        uniform = step.uniform(plugin, torch.empty_like(x, dtype=torch.float32), who)
        return masked(x, rate, uniform, rescale=rescale)
    if std is None or _is_zero(std):
        return x
    noise = step.normal(plugin, x, who)
    return additive(x, std, noise) if kind == "gaussian" else multiplicative(x, std, noise)


def _is_zero(strength: float | Tensor) -> bool:
    return not isinstance(strength, Tensor) and not strength  # reading a tensor's value would break a compiled graph


def check_rate(who: str, kind: NoiseKind, rate: float | None) -> None:
    """Check that masking has a rate, and that no other kind has one.

    Args:
        who: the class that the error names.
        kind: the kind of noise.
        rate: the masking probability, or None.

    Raises:
        UserError: if kind and rate do not fit together.
    """
    if kind == "masking" and rate is None:
        raise UserError(f"{who}(kind='masking', rate=None): give rate=, the probability that an entry becomes 0")
    if kind != "masking" and rate is not None:
        raise UserError(f"{who}(kind={kind!r}, rate={rate!r}): rate belongs to kind='masking'; use std= or change kind")
