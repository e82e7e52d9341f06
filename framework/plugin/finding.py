"""``Finding``: one error or warning of lint about a recipe."""

from __future__ import annotations

import dataclasses
from typing import Literal


class LintWarning(UserWarning):
    """Warning about a recipe; ``warnings.simplefilter("ignore", LintWarning)`` silences it."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One error or warning about a recipe, found before training.

    Args:
        severity: ``"error"`` if the result would be wrong: the run does not start; ``"warning"`` if the recipe is
            valid but probably not what was meant.
        about: name of the plugin, or of the part of the recipe, that the finding is about.
        message: one line: the problem, and what to do.

    Example:
        >>> str(Finding("warning", "sam", "changes nothing with rho=0; take it out"))
        'sam: changes nothing with rho=0; take it out'
    """

    severity: Literal["error", "warning"]
    about: str
    message: str

    def __str__(self) -> str:
        return f"{self.about}: {self.message}"
