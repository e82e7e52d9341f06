"""Checks and their results."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from framework.errors import NonFiniteError, UserError, one_line

if TYPE_CHECKING:
    from framework.testing.case import Case


class Status(enum.Enum):
    """How a check ended; worst first."""

    FAILS = "NO"
    LIMITED = "lim"
    REFUSED = "ref"
    HOLDS = "yes"
    INAPPLICABLE = "-"


class Failed(Exception):
    """Raised by a check whose claim does not hold.

    Args:
        text: the problem, with the measured deviation.
        excusable: whether a limit that the plugin declares can excuse it.
    """

    def __init__(self, text: str, *, excusable: bool = True) -> None:
        super().__init__(text)
        self.excusable = excusable


class Inapplicable(Exception):
    """Raised by a check that does not apply to the plugin; the message says why."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one check on one case.

    Args:
        check: name of the check.
        case: the plugin and its settings, as written in a recipe.
        status: how the check ended.
        text: the measured deviation, or the reason.
    """

    check: str
    case: str
    status: Status
    text: str

    def __str__(self) -> str:
        return f"{self.case}: {self.check} {self.status.name.lower()}: {self.text}"

    def require(self) -> None:
        """Raise ``AssertionError`` if the check failed."""
        if self.status is Status.FAILS:
            raise AssertionError(str(self))


class Check(NamedTuple):
    """A claim about plugins, and the function that tests it.

    Args:
        name: one short word.
        claim: the claim.
        measure: tests the claim on a case and returns the measured deviation as text; raises :class:`Failed` or
            :class:`Inapplicable`.
    """

    name: str
    claim: str
    measure: Callable[[Case], str]

    def __str__(self) -> str:
        return self.name

    def __call__(self, case: Case) -> Result:
        """Test the claim on a case."""
        status, text = self._outcome(case)
        return Result(self.name, str(case), status, text)

    def _outcome(self, case: Case) -> tuple[Status, str]:
        limit = case.limits.get(self.name)
        try:
            text = self.measure(case)
        except Inapplicable as reason:
            return Status.INAPPLICABLE, str(reason)
        except NonFiniteError as error:  # an accident, not a deliberate refusal
            return Status.FAILS, str(error)
        except UserError as error:
            return Status.REFUSED, str(error)
        except Failed as failure:
            if limit is not None and failure.excusable:
                return Status.LIMITED, f"{limit} ({failure})"
            return Status.FAILS, str(failure)
        except Exception as error:  # any error of a plugin is a finding
            return Status.FAILS, f"raised {type(error).__name__}: {one_line(error)[-300:]}"
        if limit is not None:
            return Status.FAILS, f"holds, though the plugin declares that it cannot: {limit}"
        return Status.HOLDS, text
