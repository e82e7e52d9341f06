"""What a plugin says about itself: its settings, its relations to other plugins, and facts for others to read."""

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
    """The base class of :class:`framework.Plugin` without its hook points; see there.

    Values that hook points are given, such as the step, refer to plugins by this class: they need to know no more.

    Args:
        name: the plugin's name in logs, ``--set`` and checkpoints; by default its class name in snake case.

    Raises:
        UserError: where a setting is of the wrong type or out of bounds.
    """

    name: str = dataclasses.field(default="", kw_only=True)

    before: ClassVar[Relations] = {}
    after: ClassVar[Relations] = {}
    requires: ClassVar[Relations] = {}
    conflicts: ClassVar[Relations] = {}

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
        self.declared_ = self.settings()  # what the recipe said, whatever a schedule moves later

    def check(self) -> None:
        """Check settings that only make sense together; raise :class:`framework.UserError` where they do not."""

    @property
    def moves(self) -> Collection[str]:
        """Settings of other plugins that this one moves during a run, as ``"<plugin>.<setting>"``."""
        return ()

    @property
    def needs_until(self) -> float:
        """The share of the run, 0 to 1, that it must reach for the plugin to have what it is for."""
        return 0.0

    @property
    def state_key(self) -> str:
        """The plugin's key in checkpoints."""
        return self.name

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain data, as ``run.json`` keeps them."""
        return settings_of(self)

    def limits(self) -> Mapping[str, str]:
        """Return what cannot hold with these settings, a reason by name of a check of :mod:`framework.testing`.

        A reason for ``"sharded"`` refuses the run before training where ranks share the parameters out.
        """
        return {}

    def describe(self) -> str:
        """Return the plugin as the recipe would write it."""
        shown = [f for f in dataclasses.fields(self) if f.name != "name"]
        values = [(f.name, getattr(self, f.name)) for f in shown if not is_default(f, getattr(self, f.name))]
        parts = [f"{name}={_in_words(value)}" for name, value in values]
        return f"{type(self).__name__}({', '.join(parts)})"


def _in_words(value: Any) -> str:
    """Return functions and classes by name, whose ``repr`` tells an address, and everything else by its ``repr``."""
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
