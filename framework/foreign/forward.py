"""The forward pass of a LightningModule's own step, with draws of the process's generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from framework.engine.forward import Forward
from framework.foreign.trace import keep_attributes
from framework.ops.generators import set_generators, state_of_generators


class ForeignForward(Forward):
    """Evaluates a batch by the module's ``training_step``.

    The module and its data may draw from the process's generators of torch, NumPy and Python, as under Lightning, so
    these are not seeded for each micro-batch. A second evaluation begins with the states that the first one began with,
    and leaves the generators as they were: a plugin that evaluates twice changes no draw of the module.
    """

    _states: list[dict[str, Any]]  # of the generators before each micro-batch of the step

    def _draw_alike(self) -> None:
        step = self._objective.at
        if step.again:
            set_generators(self._states[step.micro])
        elif self._objective.plugins:
            if step.micro == 0:
                self._states = []
            self._states.append(state_of_generators())

    def look(self, batch: Any) -> None:
        """Run the module on a batch, without logs, metrics and changes of its attributes; its buffers change."""
        put_back = keep_attributes(self._objective.model)
        try:
            super().look(batch)
        finally:
            put_back()

    @contextmanager
    def untraced(self) -> Iterator[None]:
        """Return a context for evaluations without side effects, draws included."""
        state = state_of_generators()
        try:
            with super().untraced():
                yield
        finally:
            set_generators(state)
