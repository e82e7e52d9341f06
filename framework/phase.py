"""One more phase of training, asked for by a plugin after the run ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Phase:
    """What to train once more, and when to end.

    Args:
        name: what the phase is called in logs and ``run.json``.
        start: ``"initial"`` for a fresh network and fresh plugins, ``"current"`` for the parameters as they stand.
        max_steps: optimizer steps at most, None for no limit.
        max_epochs: epochs at most, None for no limit.
        without: class names of plugins to leave out of a phase that starts from the initial parameters.
        stop_when: asked after each validation with the metrics by tag; True ends the phase.

    The data of the phase are the training and the validation part together.
    """

    name: str
    start: Literal["initial", "current"]
    max_steps: int | None = None
    max_epochs: int | None = None
    without: tuple[str, ...] = ()
    stop_when: Callable[[Mapping[str, float]], bool] | None = None
