"""Who answers at which hook point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from framework.errors import UserError
from framework.plugin.hooks import HOOK_POINTS
from framework.plugin.plugin import Plugin, overrides


class Answers:
    """The plugins that override each hook point, in recipe order; made once, so that an unused hook costs nothing.

    Args:
        plugins: the run's plugins in recipe order.
    """

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self._of = {point.name: [p for p in plugins if overrides(p, point.name)] for point in HOOK_POINTS}

    def of(self, hook: str) -> list[Plugin]:
        """Return the plugins that override ``hook``."""
        return self._of[hook]

    def calls(self, hook: str) -> tuple[Callable[..., Any], ...]:
        """Return the bound methods that answer at ``hook``."""
        return tuple(getattr(plugin, hook) for plugin in self._of[hook])

    def fold(self, hook: str, value: Any, *context: Any) -> Any:
        """Return ``value`` after each plugin in turn has changed it."""
        for call in self.calls(hook):
            value = call(value, *context)
        return value

    def sole(self, hook: str, *context: Any) -> Any:
        """Return the one answer that is not None, None where there is none.

        Raises:
            UserError: where two plugins answer; the message names both.
        """
        answers = [(plugin, getattr(plugin, hook)(*context)) for plugin in self._of[hook]]
        given = [(plugin, answer) for plugin, answer in answers if answer is not None]
        if len(given) > 1:
            names = " and ".join(f"{plugin.name!r}" for plugin, _ in given)
            raise UserError(
                f"{hook}: {names} both answer, and only one may; take one out (--without {given[-1][0].name})"
            )
        return given[0][1] if given else None
