"""What lint finds: one thing that is wrong or odd about a recipe."""

from __future__ import annotations

import dataclasses
from typing import Literal


class LintWarning(UserWarning):
    """Something odd about a recipe; ``warnings.simplefilter("ignore", LintWarning)`` silences it."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd about a recipe.

    Args:
        severity: ``"error"`` where the result would be wrong, which keeps the run from starting; ``"warning"`` where
            it is merely odd.
        about: the plugin's name, or the part of the recipe.
        message: one line: what is the matter, and what to do.

    Example:
        >>> str(Finding("warning", "sam", "changes nothing with rho=0; take it out"))
        'sam: changes nothing with rho=0; take it out'
    """

    severity: Literal["error", "warning"]
    about: str
    message: str

    def __str__(self) -> str:
        return f"{self.about}: {self.message}"
