"""What a plugin declares: its settings, its relations to other plugins, and facts that other plugins and lint read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, dataclass_transform

from pytorch_lightning import Callback
from torch import Tensor

from framework.settings import check_settings, is_default, settings_of

Relations = Mapping[str, str]
Terms = Mapping[str, Tensor]


@dataclass_transform(eq_default=False, field_specifiers=(dataclasses.field,))
@dataclasses.dataclass(eq=False)
class Facts(Callback):
    """The declarations of a plugin: :class:`framework.Plugin`, which documents them, without its hook points.

    The types that hook points receive, such as the step, refer to plugins by this class, which avoids an import cycle.

    Args:
        name: the plugin's name in logs, ``--set`` and checkpoints; by default its class name in snake case.

    Raises:
        UserError: if a setting is of the wrong type or out of bounds.
    """

    name: str = dataclasses.field(default="", kw_only=True)

    before: ClassVar[Relations] = {}
    after: ClassVar[Relations] = {}
    requires: ClassVar[Relations] = {}
    conflicts: ClassVar[Relations] = {}

    restores_best: ClassVar[bool] = False  # the network that is returned has the weights of the best epoch
    mixes_targets: ClassVar[bool] = False
    read_once: ClassVar[Collection[str]] = ()

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    absent: ClassVar[Sequence[Mapping[str, Any] | None]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(eq=False)(cls)

    def __post_init__(self) -> None:
        if not self.name:
            self.name = snake_case(type(self).__name__)
        check_settings(self)
        self.check()
        self.declared_ = self.settings()  # as the recipe set them: a schedule may change the attributes later

    def check(self) -> None:
        """Check settings that depend on one another; raise :class:`framework.UserError` if they do not fit together."""

    @property
    def moves(self) -> Collection[str]:
        """Settings of other plugins that this one changes during a run, as ``"<plugin>.<setting>"``."""
        return ()

    @property
    def needs_until(self) -> float:
        """The fraction of the run, 0 to 1, that must be completed for the plugin to have its effect."""
        return 0.0

    @property
    def idle(self) -> Collection[str]:
        """Settings that have no effect beside the others as they are, which a search need not try."""
        return ()

    @property
    def proportional(self) -> Collection[str]:
        """Settings above 0 to which everything that the plugin adds is proportional: to a gradient, batch or weight.

        A penalty's strength and the standard deviation of noise are such; a rate of masking is none.
        """
        return ()

    @property
    def state_key(self) -> str:
        """The plugin's key in checkpoints."""
        return self.name

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain data, as stored in ``run.json``."""
        return settings_of(self)

    def limits(self) -> Mapping[str, str]:
        """Return which checks of :mod:`framework.testing` cannot pass with these settings: a reason by name of check.

        A reason for ``"sharded"`` also refuses a run whose parameters are sharded across ranks, before training.
        """
        return {}

    def describe(self) -> str:
        """Return the plugin as it would be written in a recipe, without settings at their defaults."""
        shown = [f for f in dataclasses.fields(self) if f.name != "name"]
        values = [(f.name, getattr(self, f.name)) for f in shown if not is_default(f, getattr(self, f.name))]
        parts = [f"{name}={_in_words(value)}" for name, value in values]
        return f"{type(self).__name__}({', '.join(parts)})"


def _in_words(value: Any) -> str:
    """Return functions and classes by name, since their ``repr`` holds an address, and other values by ``repr``."""
    if isinstance(value, list):
        return f"[{', '.join(map(_in_words, value))}]"
    return getattr(value, "__qualname__", None) or repr(value)


def snake_case(name: str) -> str:
    """Return a class name in snake case.

    Example:
        >>> snake_case("NormPenalty"), snake_case("SAM")
        ('norm_penalty', 'sam')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
