"""``Plan``: what is known about a run before training, such as its data, its length and the tags it will log."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from framework.data.data import Data
from framework.errors import did_you_mean
from framework.plugin.host import Host


class Plan:
    """What is known about a run before training: the argument of the hook point ``lint``.

    Args:
        core: the core, plugins attached; ``core.plugins`` are the plugins in recipe order.
        options: the Trainer's options.
        data: the recipe's data.
        monitor: tag of the metric by which the best checkpoint is chosen.
        mode: ``"min"`` or ``"max"``: which way that metric is better.
        metrics: the recipe's metrics by name.
        open_tags: whether a core or a callback of the user's may log further tags, not known in advance.

    Attributes:
        core, options, data, monitor, mode, metrics, open_tags: as given.
    """

    def __init__(
        self,
        core: Host,
        options: Mapping[str, Any],
        *,
        data: Data,
        monitor: str = "val/loss",
        mode: str = "min",
        metrics: Mapping[str, Metric] = MappingProxyType({}),
        open_tags: bool = False,
    ) -> None:
        self.core = core
        self.options = options
        self.data = data
        self.monitor = monitor
        self.mode = mode
        self.metrics = metrics
        self.open_tags = open_tags

    @functools.cached_property
    def decays(self) -> dict[Tensor, float]:
        """The ``weight_decay`` of each parameter, from the plugins' parameter groups; 0 if a group has none."""
        groups = self.core.parameter_groups()
        return {parameter: group.get("weight_decay", 0.0) for group in groups for _, parameter in group["params"]}

    @functools.cached_property
    def epochs(self) -> float:
        """Epochs of the run by ``max_epochs`` and, on one device, ``max_steps``; infinity if neither limits it."""
        epochs, steps = self.options.get("max_epochs"), self.options.get("max_steps") or -1
        if epochs is None and steps < 0:  # Lightning's default, unless the run is limited by time
            epochs = 1000 if self.options.get("max_time") is None else -1
        ends = [float(epochs)] if epochs is not None and epochs >= 0 else []
        if steps >= 0:
            ends.append(steps / self._steps_an_epoch)
        return min(ends, default=math.inf)

    @functools.cached_property
    def _steps_an_epoch(self) -> int:
        # 1 if only the user's loader knows
        return self.data.steps(self.core.accumulate) or 1

    @functools.cached_property
    def validations(self) -> float:
        """Number of validations in the run; infinity if the run has no limit."""
        if not self.data.validates or self.options.get("limit_val_batches") == 0:
            return 0
        every = self.options.get("check_val_every_n_epoch", 1) or 1
        within = self.options.get("val_check_interval") or 1.0
        if not isinstance(within, (int, float)):  # a time: nobody knows how many steps it takes
            return math.inf
        return self.epochs / every / (within if isinstance(within, float) else within / self._steps_an_epoch)

    def why_other_direction(self, tag: str, mode: str) -> str | None:
        """Return the reason why ``mode`` is the wrong way for a monitored tag, or None if it may be right.

        A torchmetrics metric says by ``higher_is_better`` which way is better; of losses, less is.

        Args:
            tag: the monitored tag, such as ``"val/accuracy"``.
            mode: ``"min"`` or ``"max"``.
        """
        stage, _, name = tag.partition("/")
        if stage not in ("val", "train"):
            return None
        higher = higher_is_better(name, ways_of(self.metrics))
        if higher is None or higher is (mode == "max"):
            return None
        better, right = ("higher", "max") if higher else ("lower", "min")
        return f"{better} values of {tag} are better, but mode={mode!r}; give mode={right!r}"

    def why_never_logged(self, tag: str, *stages: str) -> str | None:
        """Return the reason why a monitored tag will never be logged, or None if it may be.

        Args:
            tag: the monitored tag, such as ``"val/loss"``.
            *stages: prefixes of the tags that can be monitored: ``"val"``, ``"train"``, ``"gap"``.
        """
        if self.validations == 0 and tag.startswith(("val/", "gap/")):
            return "the run has no validation; give Data(val=...), and leave limit_val_batches above 0"
        known = [f"{stage}/{name}" for stage in stages for name in ("loss", *self.metrics)]
        if tag in known or tag.startswith("penalty/") or self.open_tags:
            return None
        hint = did_you_mean(tag, known)
        return f"never logged{hint}" + ("" if "known" in hint else f" (logged are: {', '.join(known)})")


def ways_of(metrics: Mapping[str, Any]) -> dict[str, bool | None]:
    """Return for each metric whether more of it is better, None where it does not say: torchmetrics' metrics do."""
    return {name: getattr(metric, "higher_is_better", None) for name, metric in metrics.items()}


def higher_is_better(name: str, ways: Mapping[str, bool | None]) -> bool | None:
    """Return whether more of a figure is better, None if nobody says; less is of a loss.

    Args:
        name: the figure's name, without the stage: ``"accuracy"``.
        ways: what :func:`ways_of` returned.
    """
    return False if name == "loss" else ways.get(name)
