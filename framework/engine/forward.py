"""The forward pass of a micro-batch: seeded, under autocast, and repeatable without side effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from pytorch_lightning.plugins import MixedPrecision

from framework.data.outcome import Outcome
from framework.engine.objective import Objective


class Forward:
    """Evaluates J of a micro-batch, and can repeat it with the same random draws without changing buffers or logs.

    Args:
        objective: the objective to evaluate.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._autocast: Callable[[], AbstractContextManager[Any]] | None = None

    def prepare(self) -> None:
        """Read the run's precision from the Trainer; called once training starts."""
        precision = self._objective.trainer.precision_plugin
        self._stream = self._objective.at.stream("model")
        self._autocast = precision.forward_context if isinstance(precision, MixedPrecision) else None

    def __call__(self, batch: Any, *, full_precision: bool = False) -> Outcome:
        """Evaluate J and the prediction of a micro-batch; repeated calls make the same random draws.

        Args:
            batch: the micro-batch, after the plugins' transforms.
            full_precision: disable autocast.
        """
        objective, step = self._objective, self._objective.at
        self._draw_alike()
        if self._autocast is None or full_precision:
            outcome = objective.compute_loss(batch)
        else:
            with self._autocast():
                outcome = objective.compute_loss(batch)
        return Outcome.of(outcome, f"step {step.index}")

    def _draw_alike(self) -> None:
        """Let the network draw the same numbers whenever this micro-batch of the step is evaluated."""
        objective, step = self._objective, self._objective.at
        _seed_global_generator(self._stream.key(step.index, step.micro, step.rank) >> 1, objective.device)

    def look(self, batch: Any) -> None:
        """Run the network on a batch as ``compute_loss`` does, without logs and metrics; its buffers change."""
        self._objective.at.again += 1
        try:
            self._objective.compute_loss(batch)
        finally:
            self._objective.at.again -= 1

    @contextmanager
    def untraced(self) -> Iterator[None]:
        """Return a context for evaluations without side effects.

        On exit the network's buffers, such as running statistics, are restored by copy and edits of weights are undone;
        within it nothing is logged or added to metrics.
        """
        objective = self._objective
        put_back = objective.keep_state()
        objective.at.again += 1
        try:
            with objective.edits.nested():
                yield
        finally:
            objective.at.again -= 1
            put_back()

    def evaluate(self, batch: Any, *, full_precision: bool = False) -> Outcome:
        """Evaluate J of a micro-batch again, with a graph, for use within ``penalty``.

        The network makes the same random draws as in the micro-batch's own forward, and plugins change activations in
        the same way.

        Args:
            batch: the step's micro-batch (``step.batch``) with another input or target.
            full_precision: disable autocast, for differences too small for half precision.
        """
        with self.untraced():
            return self(batch, full_precision=full_precision)


def _seed_global_generator(seed: int, device: torch.device) -> None:
    # torch.manual_seed takes some 0.3 ms, since it seeds every backend; the model draws from only one
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
