"""``Outcome``: what evaluating the network on a batch gives."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from framework.errors import UserError


class Outcome(NamedTuple):
    """The result of evaluating the network on one batch.

    Args:
        loss: the data loss J, a scalar: a mean over the batch's samples (or over what ``Core.count`` counts); None to
            skip the batch.
        prediction: the prediction for the metrics, None for none.
        target: the clean target for the metrics.
        terms: parts of J, or other numbers of the batch, by name: scalars that are shown beside the loss as
            ``train/<name>`` and ``val/<name>``, as means weighted like it.
    """

    loss: Tensor | None
    prediction: Any = None
    target: Any = None
    terms: Mapping[str, Tensor] = MappingProxyType({})

    @staticmethod
    def of(answer: Any, where: str) -> Outcome:
        """Convert what ``compute_loss`` returned to an outcome; it may return the loss alone.

        Args:
            answer: an outcome or a loss.
            where: what errors name, such as ``"step 3"``.

        Raises:
            UserError: if the loss is not one number.
        """
        outcome = answer if isinstance(answer, Outcome) else Outcome(answer)
        loss = outcome.loss
        if loss is not None and not isinstance(loss, Tensor):
            kind = type(loss).__name__
            raise UserError(
                f"{where}: the loss is of type {kind}, not a tensor; return Outcome(loss, prediction, target)"
            )
        if loss is not None and loss.numel() != 1:
            shape = tuple(loss.shape)
            raise UserError(f"{where}: the loss has shape {shape}, not one number; return a mean over samples")
        if outcome.terms is None:
            outcome = outcome._replace(terms={})
        for name, term in outcome.terms.items():
            if name in ("loss", "objective", "skipped_steps"):
                raise UserError(f"{where}: Outcome(terms=...): {name!r} is a value of the run's own; rename the term")
            if not isinstance(term, Tensor) or term.numel() != 1:
                given = f"shape {tuple(term.shape)}" if isinstance(term, Tensor) else f"type {type(term).__name__}"
                raise UserError(f"{where}: Outcome(terms=...): {name!r} has {given}; give a tensor of one number")
        return outcome
