"""Combines what plugins answer at a hook point, by the rule of that hook point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from framework.errors import UserError
from framework.plugin.hooks import HOOK_POINTS
from framework.plugin.plugin import Plugin, overrides


class Answers:
    """The plugins that override each hook point, in recipe order, and one method for each rule of combining.

    The lists are made once, so that a hook point that no plugin overrides costs nothing. The rule ``nest`` is
    :class:`framework.plugin.edits.WeightEdits`, which undoes what ``notify`` of ``edit_weights`` did.

    Args:
        plugins: the run's plugins in recipe order.
    """

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self._of = {point.name: [p for p in plugins if overrides(p, point.name)] for point in HOOK_POINTS}
        self._calls = {name: tuple(getattr(plugin, name) for plugin in found) for name, found in self._of.items()}

    def of(self, hook: str) -> list[Plugin]:
        """Return the plugins that override ``hook``."""
        return self._of[hook]

    def calls(self, hook: str) -> tuple[Callable[..., Any], ...]:
        """Return the bound methods that answer at ``hook``."""
        return self._calls[hook]

    def notify(self, hook: str, *context: Any) -> None:
        """Call every plugin, in order."""
        for call in self._calls[hook]:
            call(*context)

    def fold(self, hook: str, value: Any, *context: Any) -> Any:
        """Return ``value`` after each plugin in turn has changed it."""
        for call in self._calls[hook]:
            value = call(value, *context)
        return value

    def any(self, hook: str, *context: Any) -> bool:
        """Return whether any plugin answers True; all are called, since they keep counts."""
        answers = [call(*context) for call in self._calls[hook]]
        return any(answers)

    def collect(self, hook: str, *context: Any) -> list[Any]:
        """Return all that the plugins yield, in order."""
        return [found for call in self._calls[hook] for found in call(*context)]

    def sum(self, hook: str, *context: Any) -> dict[str, Tensor]:
        """Return the terms of all plugins by tag; their sum is the hook point's part of the objective."""
        terms: dict[str, Tensor] = {}
        for plugin, call in zip(self._of[hook], self._calls[hook], strict=True):
            terms.update(named_terms(plugin.name, call(*context)))
        return terms

    def sole(self, hook: str, *context: Any, rival: str | None = None) -> Any:
        """Return the one answer that is neither None nor False, None where there is none.

        Args:
            hook: the hook point.
            *context: its arguments.
            rival: who besides the plugins does the same, such as an option of the Trainer.

        Raises:
            UserError: where two answer; the message names both.
        """
        asked = zip(self._of[hook], self._calls[hook], strict=True)
        answers = {plugin.name: call(*context) for plugin, call in asked}
        given = {name: answer for name, answer in answers.items() if answer is not None and answer is not False}
        _refuse_two(hook, list(given), rival)
        return next(iter(given.values()), None)

    def only(self, hook: str) -> Callable[..., Any] | None:
        """Return the bound method of the one plugin that overrides ``hook``, None where none does.

        For a hook point of rule ``sole`` whose plugin answers by what it does, not by what it returns.

        Raises:
            UserError: where two override it; the message names both.
        """
        _refuse_two(hook, [plugin.name for plugin in self._of[hook]], None)
        return next(iter(self._calls[hook]), None)


def _refuse_two(hook: str, names: Sequence[str], rival: str | None) -> None:
    answering = [*map(repr, names), *([rival] if rival is not None else [])]
    if names and len(answering) > 1:
        raise UserError(
            f"{hook}: {' and '.join(answering)} both answer, and only one may; take one out (--without {names[-1]})"
        )


def named_terms(name: str, answer: Tensor | Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return a plugin's answer as terms by tag: ``penalty/<plugin>`` or ``penalty/<plugin>/<term>``.

    Example:
        >>> named_terms("norm_penalty", {"l1": 1.0, "l2": 2.0})
        {'penalty/norm_penalty/l1': 1.0, 'penalty/norm_penalty/l2': 2.0}
    """
    if answer is None:
        return {}
    if isinstance(answer, Mapping):
        return {f"penalty/{name}/{term}": value for term, value in answer.items()}
    return {f"penalty/{name}": answer}
