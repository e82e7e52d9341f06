"""The interface of the core for plugins: a protocol that :class:`framework.Core` implements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from framework.data.data import Data
from framework.data.outcome import Outcome
from framework.ops.patterns import Patterns
from framework.plugin.edits import WeightEdits
from framework.plugin.facts import Facts
from framework.plugin.step import Step


class Again(Protocol):
    """Evaluates a micro-batch a second time, without side effects."""

    def evaluate(self, batch: Any, *, full_precision: bool = False) -> Outcome:
        """Evaluate J of a micro-batch again, with a graph and the same random draws; for use within ``penalty``.

        Buffers, logs and metrics are unaffected.

        Args:
            batch: the step's micro-batch (``step.batch``) with another input or target.
            full_precision: disable autocast, for differences too small for half precision.
        """

    def look(self, batch: Any) -> None:
        """Run the network on a batch as ``compute_loss`` does, without logs and metrics; its buffers change."""


class Answering(Protocol):
    """Lists the plugins at each hook point."""

    def of(self, hook: str) -> Sequence[Any]:
        """Return the plugins that override a hook point, in recipe order."""


class Host(Protocol):
    """The core as plugins receive it in ``attach``, ``lint``, ``evaluation_weights``, ``finish`` and ``next_phase``.

    Attributes:
        model: the network, as ``prepare_model`` of the plugins returned it.
        loss: the recipe's loss, None if a subclass of the core computes its own.
        data: the recipe's data.
        at: the current step.
        edits: saves weights before they are edited, and restores them.
        accumulate: number of micro-batches per optimizer step.
        monitor: tag of the metric that determines the best epoch.
        mode: ``"min"`` or ``"max"``: which way that metric is better.
    """

    model: nn.Module
    loss: Callable[[Any, Any], Tensor] | None
    data: Data | None
    at: Step
    edits: WeightEdits
    accumulate: int
    monitor: str
    mode: str

    @property
    def plugins(self) -> Sequence[Facts]:
        """All plugins of the run, in recipe order."""

    @property
    def answers(self) -> Answering:
        """The plugins at each hook point."""

    @property
    def again(self) -> Again:
        """Evaluates a micro-batch a second time."""

    @property
    def device(self) -> torch.device:
        """The device of the network."""

    @property
    def trainer(self) -> pl.Trainer:
        """Lightning's Trainer."""

    def __call__(self, x: Any) -> Any:
        """Return the network's output for a batch's input."""

    def observe(self, plugin: Any, patterns: Patterns) -> dict[str, nn.Module]:
        """Register a plugin's ``transform_activation`` at the layers that match, and return these layers by name."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups after ``group_parameters``; ``"params"`` are ``(name, parameter)`` pairs."""

    def evaluation(self) -> AbstractContextManager[None]:
        """Return a context in which the network holds the evaluation weights: an average, if a plugin keeps one."""

    def as_in_training(self) -> AbstractContextManager[None]:
        """Return a context in which every layer has the mode that it trains in."""

    def training_batches(self, limit: int) -> Iterator[Any]:
        """Yield up to ``limit`` training batches on the device, the same on every rank; training is unaffected."""

    def sensitivity(self, window: Any, vector: Sequence[Tensor], names: Sequence[str]) -> dict[str, float]:
        """Return how the step's gradient, multiplied by a vector, changes with the logarithms of plugins' strengths."""

    def validation_gradient(self, weights: Sequence[Tensor], samples: int, look: int) -> list[Tensor]:
        """Return the gradient of J over validation samples, in evaluation mode, in turn by the number of the look."""

    def training_loss(self) -> float:
        """Return J over the training part at the evaluation weights, in evaluation mode."""

    def compute_loss(self, batch: Any) -> Outcome | Tensor:
        """Compute J of one batch."""

    def count(self, batch: Any) -> int | Tensor:
        """Return the number of elements that J averages over in this batch, by default its samples."""
