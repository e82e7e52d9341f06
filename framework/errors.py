"""Errors that a user can fix, reported in one line, and the wording that they share."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a recipe, a flag or a plugin that its author can fix.

    The message is one line that names the argument, the value received and what to do. The command line prints it
    without a traceback and exits with code 2; from Python it is an ordinary exception.
    """


class Mistake(UserError):
    """Raised for a mistake in data or shapes that shows in the user's own code, whose lines are printed below it."""


class NonFiniteError(UserError):
    """The objective became infinite or NaN."""

    ADVICE = (
        "lower the learning rate, clip gradients (Optimizer(clip_norm=1.0)), or go on without such batches"
        " (--on-nonfinite skip)"
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` with the known name closest to ``word``, else the list of known names.

    Example:
        >>> did_you_mean("alhpa", ["alpha", "p"])
        "; did you mean 'alpha'?"
        >>> did_you_mean("zzz", ["alpha", "p"])
        '; known: alpha, p'
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names) if names else 'none'}"


def some(names: Iterable[str]) -> str:
    """Return the first of some names and the number of the others, as text.

    Example:
        >>> some(["0.bias", "2.bias", "3.bias"]), some(["0.bias"])
        ('0.bias and 2 more', '0.bias')
    """
    first, *rest = names
    return f"{first} and {len(rest)} more" if rest else first


def brief(value: object, limit: int = 80) -> str:
    r"""Return a value as short text on one line: a tensor or array by its shape, anything else by its ``repr``.

    Args:
        value: the value.
        limit: characters of the text, at most.

    Example:
        >>> brief([0.5, "a\n"]), brief("x" * 99, 10)
        ("[0.5, 'a\\n']", "'xxxxxx...")
    """
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"<{type(value).__name__} of shape {tuple(shape)}>"
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def tally(names: Iterable[str], limit: int = 3) -> str:
    """Return distinct names with how often each comes, as text.

    Args:
        names: the names.
        limit: distinct names that are shown; of others only their number is.

    Example:
        >>> tally(["int", "str", "int"]), tally("abcd", 2)
        ('int (2 times), str', 'a, b and 2 others')
    """
    counts = Counter(names)
    shown = [f"{name} ({count} times)" if count > 1 else name for name, count in list(counts.items())[:limit]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} other{'s' * (more > 1)}" if more else "")


def one_line(error: BaseException) -> str:
    r"""Return an error's message on one line, or the name of its class if the message is empty.

    Example:
        >>> one_line(ValueError("two\n  lines")), one_line(KeyboardInterrupt())
        ('two lines', 'KeyboardInterrupt')
    """
    return " ".join(str(error).split()) or type(error).__name__


def note(name: str, kind: type, hook: str, where: str, error: BaseException) -> str:
    """Return one line that names the plugin that raised an error and the hook point where it did.

    Args:
        name: name of the plugin.
        kind: class of the plugin.
        hook: the hook point.
        where: further place, such as ``" for training sample 3"``.
        error: the error.

    Example:
        >>> note("sam", ValueError, "attach", "", ValueError("no weights"))
        "plugin 'sam' (builtins.ValueError) raised in attach: ValueError: no weights"
    """
    who = f"plugin {name!r} ({kind.__module__}.{kind.__qualname__})"
    return f"{who} raised in {hook}{where}: {type(error).__name__}: {one_line(error)}"
