"""Calls the plugins at a hook point and combines what they return, by the rule of that hook point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from framework.errors import UserError
from framework.ops.draws import keyed_globals
from framework.ops.keyed import key_of
from framework.plugin.hooks import HOOK_POINTS
from framework.plugin.plugin import Plugin, overrides

Call = Callable[..., Any]


class Answers:
    """The plugins that override each hook point, in recipe order, with one method per combining rule.

    The lists are built once, so a hook point that no plugin overrides costs nothing. The rule ``nest`` is implemented
    by :class:`framework.plugin.edits.WeightEdits`, which undoes what ``notify("edit_weights")`` did.

    Args:
        plugins: the run's plugins in recipe order.
    """

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self._of = {point.name: [p for p in plugins if overrides(p, point.name)] for point in HOOK_POINTS}
        # tuples, made once: a step of a small network takes some 300 us, and calls several hook points
        self._calls = {name: tuple(getattr(plugin, name) for plugin in found) for name, found in self._of.items()}
        self._named = {
            name: tuple((plugin.name, getattr(plugin, name)) for plugin in found) for name, found in self._of.items()
        }

    def of(self, hook: str) -> list[Plugin]:
        """Return the plugins that override ``hook``, in recipe order."""
        return self._of[hook]

    def notify(self, hook: str, *context: Any) -> None:
        """Call every plugin in order, ignoring what they return."""
        for call in self._calls[hook]:
            call(*context)

    def fold(self, hook: str, value: Any, *context: Any) -> Any:
        """Pass ``value`` through the plugins in order and return the result of the last one.

        Raises:
            UserError: if a plugin returns None, which a forgotten ``return`` does.
        """
        for name, call in self._named[hook]:
            value = call(value, *context)
            if value is None:
                raise UserError(f"plugin {name!r}: {hook} returned None; return the value, changed or as it is")
        return value

    def prepare(self, model: Any, seed: int) -> Any:
        """Return the network as ``prepare_model`` of the plugins makes it, each of which draws from its own generator.

        Whatever a plugin draws, such as the weights of a new layer, depends on the run's seed and its name alone.

        Args:
            model: the network.
            seed: the run's seed.
        """
        for name, call in self._named["prepare_model"]:
            with keyed_globals(key_of(seed, f"{name}.prepare_model") >> 1):
                model = call(model)
            if model is None:
                raise UserError(
                    f"plugin {name!r}: prepare_model returned None; return the network, changed or as it is"
                )
        return model

    def any(self, hook: str, *context: Any) -> bool:
        """Return whether any plugin returns True; all are called, because they may count their calls."""
        answers = [call(*context) for call in self._calls[hook]]
        return any(answers)

    def collect(self, hook: str, *context: Any) -> list[Any]:
        """Return a list of everything the plugins yield, in order."""
        return [found for call in self._calls[hook] for found in call(*context)]

    def sum(self, hook: str, *context: Any) -> dict[str, Tensor]:
        """Return the terms of all plugins by tag; the caller adds them to the objective."""
        terms: dict[str, Tensor] = {}
        for name, call in self._named[hook]:
            terms.update(named_terms(name, call(*context)))
        return terms

    def sole(self, hook: str, *context: Any, rival: str | None = None) -> Any:
        """Call every plugin and return the only answer that is neither None nor False, or None if there is none.

        Args:
            hook: name of the hook point.
            *context: arguments of the hook point.
            rival: description of something else that does the same, such as an option of the Trainer.

        Raises:
            UserError: if two answer; the message names both.
        """
        given: list[str] = []
        only: Any = None
        for name, call in self._named[hook]:
            answer = call(*context)
            if answer is not None and answer is not False:
                given.append(name)
                only = answer
        if given:
            _refuse_two(hook, given, rival)
        return only

    def only(self, hook: str) -> Callable[..., Any] | None:
        """Return the bound method of the only plugin that overrides ``hook``, or None if none does.

        For a hook point of rule ``sole`` that acts through side effects and returns nothing.

        Raises:
            UserError: if two override it; the message names both.
        """
        _refuse_two(hook, [plugin.name for plugin in self._of[hook]], None)
        return next(iter(self._calls[hook]), None)

    def first(self, hook: str) -> Callable[..., Any] | None:
        """Return what is called first at ``hook``, such as the bound method of a plugin, or None if nothing is."""
        return next(iter(self._calls[hook]), None)

    def pass_through(
        self,
        wrap: Callable[[str, str, Callable[..., Any]], Callable[..., Any]],
        first: Mapping[str, Callable[..., Any]],
    ) -> Callable[[], None]:
        """Let every call of a plugin pass through a function, and return what ends that.

        Args:
            wrap: returns what is called in place of a plugin's method, given hook point, plugin's name and method.
            first: what is called before the plugins at a hook point of rule ``notify``.
        """
        kept = self._calls, self._named
        named = {
            hook: tuple((name, wrap(hook, name, call)) for name, call in found) for hook, found in self._named.items()
        }
        self._named = named
        self._calls = {hook: tuple(call for _, call in found) for hook, found in named.items()}
        self._calls |= {hook: (call, *self._calls[hook]) for hook, call in first.items()}

        def end() -> None:
            self._calls, self._named = kept

        return end


def _refuse_two(hook: str, names: Sequence[str], rival: str | None) -> None:
    answering = [*map(repr, names), *([rival] if rival is not None else [])]
    if names and len(answering) > 1:
        raise UserError(
            f"{hook}: {' and '.join(answering)} both answer, but only one may; take one out (--without {names[-1]})"
        )


def named_terms(name: str, answer: Tensor | Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return what a plugin's penalty returned as terms by tag: ``penalty/<plugin>`` or ``penalty/<plugin>/<term>``.

    Example:
        >>> named_terms("norm_penalty", {"l1": 1.0, "l2": 2.0})
        {'penalty/norm_penalty/l1': 1.0, 'penalty/norm_penalty/l2': 2.0}
    """
    if answer is None:
        return {}
    if isinstance(answer, Mapping):
        return {f"penalty/{name}/{term}": value for term, value in answer.items()}
    return {f"penalty/{name}": answer}
