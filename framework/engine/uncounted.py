"""Batches that gave no loss, and the reason to tell where none gave one."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from framework.errors import NonFiniteError, UserError


class Uncounted:
    """Counts the batches that give nothing to the mean of J, by stage: those skipped, and those without weight."""

    def __init__(self) -> None:
        self._none: dict[str, int] = {}
        self._weightless: dict[str, int] = {}
        self._why: dict[str, str] = {}

    def see(self, stage: str, loss: Tensor | None) -> None:
        """Count a batch: one whose loss is None, or else one in which nothing counts.

        Args:
            stage: ``"train"``, ``"val"`` or ``"test"``.
            loss: the loss of its outcome.
        """
        counts = self._none if loss is None else self._weightless
        counts[stage] = counts.get(stage, 0) + 1

    def close(self, stage: str, *, counted: bool) -> None:
        """End an epoch or evaluation.

        Args:
            stage: the stage.
            counted: whether any of its batches gave a loss.
        """
        skipped, weightless = self._none.pop(stage, 0), self._weightless.pop(stage, 0)
        reasons = []
        if skipped:
            reasons.append(f"the loss of {_all(skipped)} was None (compute_loss returned none)")
        if weightless:
            reasons.append(
                f"the sample weights, or the targets that are not ignored, of {_all(weightless)} add up to 0"
            )
        self._why[stage] = "" if counted else " and ".join(reasons)

    def why(self, stage: str) -> str:
        """Return why the last epoch or evaluation of a stage gave no loss, empty if it gave one or had no batch."""
        return self._why.get(stage, "")


def check_epoch(means: Mapping[str, tuple[float, float]], epoch: int, skipped: int, uncounted: Uncounted) -> None:
    """Check that an epoch trained on something, and that its means are finite.

    Args:
        means: sums of values times weights, and sums of weights, by tag.
        epoch: the epoch.
        skipped: steps skipped so far, since they were not finite.
        uncounted: counted the batches without a loss.

    Raises:
        UserError: if no batch gave a loss.
        NonFiniteError: if no step was finite, or a mean is not.
    """
    uncounted.close("train", counted="loss" in means)
    if skipped and "loss" not in means:
        raise NonFiniteError(
            f"epoch {epoch}: no step of it was finite, {skipped} were skipped so far; lower the learning rate, or check"
            " the data"
        )
    if why := uncounted.why("train"):
        raise UserError(f"epoch {epoch}: nothing was trained: {why}")
    wrong = {tag: total for tag, (total, _) in means.items() if not math.isfinite(total)}
    for tag, total in wrong.items():  # on an accelerator, single steps are not checked
        if not tag.startswith("train/"):
            raise NonFiniteError(f"epoch {epoch}: {tag} is {total}; {NonFiniteError.ADVICE}")
    for tag, total in wrong.items():
        raise NonFiniteError(f"epoch {epoch}: {_term(tag, total)}")


def terms_in_words(stage: str, means: Mapping[str, float]) -> str:
    """Return what to say of an evaluation's terms that are not finite, empty if all are, or J is not.

    Args:
        stage: ``"val"`` or ``"test"``.
        means: means by name, of J (``"loss"``) and of the terms.
    """
    wrong = [name for name, mean in means.items() if not math.isfinite(mean)]
    if not wrong or "loss" in wrong:  # of which explain_evaluation tells
        return ""
    words = {"val": "validation"}.get(stage, stage)
    return f"{words}: {_term(f'{stage}/{wrong[0]}', means[wrong[0]])}"


def _term(tag: str, value: float) -> str:
    name = tag.partition("/")[2]
    return (
        f"{name!r} of Outcome(terms=...), which is only shown as {tag}, is {value}, while the loss is finite: look at"
        " how compute_loss computes it"
    )


def _all(count: int) -> str:
    return f"each of {count} batches" if count > 1 else "the one batch"
