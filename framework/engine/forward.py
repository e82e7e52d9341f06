"""Second evaluations: the step's gradient, or one micro-batch, evaluated once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from framework.data.batch import Outcome
from framework.ops.buffers import keep_buffers

if TYPE_CHECKING:
    from framework.data.loaders import Window
    from framework.engine.core import Core


class Again:
    """Evaluates once more as if it had not: same random draws, no trace in buffers and logs.

    Buffers of the network (running statistics of BatchNorm above all) are put back by copy, and nothing that is
    evaluated again is logged or shown to metrics.

    Args:
        core: whose objective is evaluated.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    @contextmanager
    def _untraced(self) -> Iterator[None]:
        core = self._core
        put_buffers_back = keep_buffers(core.model)
        core.at.again += 1
        try:
            with core.edits.nested():
                yield
        finally:
            core.at.again -= 1
            put_buffers_back()

    def gradient(self, window: Window, edit: Callable[[], None]) -> None:
        """Replace the weights' gradient by the one at edited weights, over all micro-batches of the window.

        Args:
            window: the step's window.
            edit: edits weights in place, each saved first by ``step.edits.save``; undone on every way out.
        """
        core = self._core
        with core.edits.nested():
            with torch.no_grad():
                edit()
            core.update.zero_gradients()
            with self._untraced():
                core.gradient(window)

    def evaluate(self, batch: Any, *, full_precision: bool = False) -> Outcome:
        """Return J of a micro-batch evaluated once more, with a graph, to be used within ``penalty``.

        The network draws what it drew in the micro-batch's own forward, and plugins change activations as they did.

        Args:
            batch: the step's micro-batch (``step.batch``) with another input or target.
            full_precision: leave autocast off, for differences too small for half precision.
        """
        core = self._core
        with self._untraced():
            return core.gradient.outcome(batch, full_precision=full_precision)
