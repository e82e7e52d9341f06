"""What a plugin may ask of the core: a protocol that :class:`framework.Core` fulfils."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from framework.data.batch import Outcome
from framework.data.data import Data
from framework.ops.patterns import Patterns
from framework.plugin.edits import WeightEdits
from framework.plugin.facts import Facts
from framework.plugin.step import Step


class Again(Protocol):
    """Evaluates a micro-batch a second time."""

    def evaluate(self, batch: Any, *, full_precision: bool = False) -> Outcome:
        """Return J of a micro-batch with a graph, with the draws of its own forward; for use within ``penalty``.

        Buffers, logs and metrics stay as they were.

        Args:
            batch: the step's micro-batch (``step.batch``) with another input or target.
            full_precision: disable autocast, for differences too small for half precision.
        """


class Answering(Protocol):
    """Knows which plugins answer at which hook point."""

    def of(self, hook: str) -> Sequence[Any]:
        """Return the plugins that answer at a hook point, in recipe order."""


class Host(Protocol):
    """The core as plugins see it: in ``attach``, ``evaluation_weights``, ``finish``, ``next_phase`` and ``lint``.

    Attributes:
        model: the network, as the plugins prepared it.
        loss: the recipe's loss, None where a subclass of the core computes its own.
        data: the recipe's data.
        at: the step at hand.
        edits: saves weights before they are edited, and restores them.
        accumulate: micro-batches of an optimizer step.
    """

    model: nn.Module
    loss: Callable[[Any, Any], Tensor] | None
    data: Data | None
    at: Step
    edits: WeightEdits
    accumulate: int

    @property
    def plugins(self) -> Sequence[Facts]:
        """All plugins of the run, in recipe order."""

    @property
    def answers(self) -> Answering:
        """Which plugins answer at which hook point."""

    @property
    def again(self) -> Again:
        """Second evaluations of a micro-batch."""

    @property
    def device(self) -> torch.device:
        """The device of the network."""

    @property
    def trainer(self) -> pl.Trainer:
        """Lightning's Trainer."""

    def __call__(self, x: Any) -> Any:
        """Return the network's output for a batch's input."""

    def observe(self, plugin: Any, patterns: Patterns) -> dict[str, nn.Module]:
        """Register a plugin's ``transform_activation`` at the layers that match, and return these by name."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups as the plugins make them, ``"params"`` as pairs with names."""

    def evaluation(self) -> AbstractContextManager[None]:
        """Return a context in which the network holds the weights to evaluate."""

    def training_batches(self, limit: int) -> Iterator[Any]:
        """Yield up to ``limit`` training batches on the device, the same on every rank, apart from training."""

    def training_loss(self) -> float:
        """Return J over the training part with the weights to evaluate, in evaluation mode."""

    def compute_loss(self, batch: Any) -> Outcome | Tensor:
        """Return J of one batch."""

    def count(self, batch: Any) -> int | Tensor:
        """Return how many equal parts J is a mean over in this batch."""
