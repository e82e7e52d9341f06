"""A further phase of training that a plugin requests after the run ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

# options of the run's Trainer that would end a phase at the run's end instead of its own
_ENDS = ("max_epochs", "max_steps", "min_epochs", "min_steps")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A further phase of training on the training and validation parts together.

    The phase has a fresh optimizer, a schedule of its own length, and step counts that start from 0; its curves are
    written beside those of the run, under its name. The validation part is still evaluated, but no longer measures
    generalization.

    Args:
        name: what the phase is called in logs and ``run.json``.
        start: ``"initial"`` for a fresh network and fresh plugins, ``"current"`` to keep the parameters as they are.
        max_steps: maximal number of optimizer steps, None for no limit.
        max_epochs: maximal number of epochs, None for no limit.
        without: names of plugins to leave out of a phase that starts from the initial parameters.
        stop_when: function of the metrics by tag, called after each validation; the phase ends if it returns True.

    Raises:
        ValueError: if neither ``max_steps`` nor ``max_epochs`` is given.
    """

    name: str
    start: Literal["initial", "current"]
    max_steps: int | None = None
    max_epochs: int | None = None
    without: tuple[str, ...] = ()
    stop_when: Callable[[Mapping[str, float]], bool] | None = None

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_epochs is None:
            raise ValueError(f"Phase({self.name!r}): give max_steps or max_epochs, or it may never end")

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the run's Trainer options with the phase's own end in place of the run's."""
        kept = {name: value for name, value in options.items() if name not in _ENDS}
        return {**kept, "max_epochs": self.max_epochs or -1, "max_steps": self.max_steps or -1}
