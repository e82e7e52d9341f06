"""What is known of a run before it begins."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback
from torch import Tensor

from framework.data.parts import length_of
from framework.engine.core import Core
from framework.errors import did_you_mean

if TYPE_CHECKING:
    from framework.recipe.recipe import Recipe

# the notices in which Lightning lets a callback log what others can monitor
_LOGGING = tuple(
    name
    for name in vars(Callback)
    if name.startswith(("on_train_", "on_validation_")) and ("_epoch_" in name or "_batch_" in name)
)


class Plan:
    """What is known of a run before it begins, for the hook point ``lint``.

    Args:
        recipe: the recipe, edits applied.
        core: its core, plugins attached.
        options: the Trainer's options.

    Attributes:
        recipe: as given.
        core: as given; ``core.plugins`` are the plugins in the order in which they answer.
        options: as given.
    """

    def __init__(self, recipe: Recipe, core: Core, options: Mapping[str, Any]) -> None:
        self.recipe = recipe
        self.core = core
        self.options = options

    @functools.cached_property
    def decays(self) -> dict[Tensor, float]:
        """The ``weight_decay`` of each parameter, as the plugins group them; 0 where a group says nothing."""
        groups = self.core.parameter_groups()
        return {parameter: group.get("weight_decay", 0.0) for group in groups for _, parameter in group["params"]}

    @functools.cached_property
    def epochs(self) -> float:
        """Epochs of the run by ``max_epochs`` and, on one device, ``max_steps``; infinity where neither ends it."""
        epochs, steps = self.options.get("max_epochs"), self.options.get("max_steps") or -1
        if epochs is None and steps < 0:  # Lightning's own end, unless it is to be a time
            epochs = 1000 if self.options.get("max_time") is None else -1
        ends = [float(epochs)] if epochs is not None and epochs >= 0 else []
        if steps >= 0:
            ends.append(steps / self._steps_an_epoch)
        return min(ends, default=math.inf)

    @functools.cached_property
    def _steps_an_epoch(self) -> int:
        data = self.recipe.data
        step_size = data.batch_size * self.core.accumulate
        whole, rest = divmod(length_of(data.train), step_size)
        return max(whole + (rest > 0 and not data.drop_last), 1)

    @functools.cached_property
    def validations(self) -> float:
        """Validations of the run; infinity where it has no end."""
        if self.recipe.data.val is None or self.options.get("limit_val_batches") == 0:
            return 0
        every = self.options.get("check_val_every_n_epoch", 1) or 1
        within = self.options.get("val_check_interval") or 1.0
        return self.epochs / every / (within if isinstance(within, float) else within / self._steps_an_epoch)

    def why_never_logged(self, tag: str, *stages: str) -> str | None:
        """Return why nothing will ever be logged under a tag that somebody monitors; None where something may be.

        Args:
            tag: such as ``"val/loss"``.
            *stages: first parts of the tags that can be monitored there: ``"val"``, ``"train"``, ``"gap"``.
        """
        if self.validations == 0 and tag.startswith(("val/", "gap/")):
            return "the run has no validation; give Data(val=...), and leave limit_val_batches above 0"
        known = [f"{stage}/{name}" for stage in stages for name in ("loss", *self.recipe.metrics)]
        if tag in known or tag.startswith("penalty/") or self._others_log:
            return None
        hint = did_you_mean(tag, known)
        return f"never logged{hint}" + ("" if "known" in hint else f" (logged are: {', '.join(known)})")

    @functools.cached_property
    def _others_log(self) -> bool:
        """Tell whether a core or callback of the user's may log tags that nobody here can know."""
        given = self.options.get("callbacks") or []
        callbacks = [*self.recipe.plugins, *(given if isinstance(given, list) else [given])]
        return type(self.core) is not Core or any(
            getattr(type(callback), notice, None) is not getattr(Callback, notice)
            for callback in callbacks
            for notice in _LOGGING
        )
