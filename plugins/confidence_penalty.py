"""Confidence penalty: a term against predictions that are too sure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.data.batch import weight_of
from framework.data.means import mean_as_in
from framework.data.outputs import outputs_of
from framework.errors import UserError
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange
from framework.settings import NonNegative


def entropy(logits: Tensor) -> Tensor:
    r"""Return the entropy of the softmax of logits, in nats.

    .. math:: H(p) = -\sum_k p_k \log p_k, \qquad p = \mathrm{softmax}(a)

    Args:
        logits: a, ``(samples, classes, …)``.

    Returns:
        ``(samples, …)``.

    Example:
        >>> entropy(torch.zeros(1, 4))
        tensor([1.3863])
    """
    p = F.log_softmax(logits, dim=1)
    return -(p.exp() * p).sum(1)


def binary_entropy(logits: Tensor) -> Tensor:
    r"""Return the entropy of yes or no by logits, in nats, entry by entry.

    .. math:: H = -\sigma(a)\log\sigma(a) - \sigma(-a)\log\sigma(-a)

    Example:
        >>> binary_entropy(torch.zeros(1))
        tensor([0.6931])
    """
    return -(logits.sigmoid() * F.logsigmoid(logits) + (-logits).sigmoid() * F.logsigmoid(-logits))


class ConfidencePenalty(Plugin):
    r"""Add the negative entropy of the predicted distribution to the objective, or what it lacks to a threshold.

    .. math::
        \alpha\Omega = -\alpha\,\frac1N \sum_n H\bigl(p(\cdot \mid x_n)\bigr), \qquad
        \alpha\Omega = \alpha\,\frac1N \sum_n \max\bigl(0, \Gamma - H(p(\cdot \mid x_n))\bigr)

    Predictions weigh as they do in J: class weights, ignored targets and sample weights count. The distribution is
    the softmax of logits for cross-entropy and yes or no of each logit for the binary one.

    Args:
        alpha: strength α, 0.01 to 1 for many classes; zero adds no term.
        threshold: Γ in nats, below which alone an entropy is penalized, so that early in training, when predictions
            are unsure anyway, the term does not slow learning down; None for no threshold.

    Raises:
        UserError: if the loss is no cross-entropy of logits.

    Example:
        >>> ConfidencePenalty(0.1).describe()
        'ConfidencePenalty(alpha=0.1)'

    Interacts with: ``LabelSmoothing``, which pulls to the same even distribution by the reverse divergence; one of the
    two suffices.

    Source: Pereyra et al. (2017), Regularizing neural networks by penalizing confident output distributions.
    """

    alpha: Annotated[NonNegative, LogRange(1e-3, 1)]
    threshold: NonNegative | None = None

    examples = ({"alpha": 0.3}, {"alpha": 1.0, "threshold": 1.5})
    absent = ({"alpha": 0.0},)

    @property
    def proportional(self) -> Collection[str]:
        """Return the strength, to which what is added is proportional."""
        return ("alpha",)

    def attach(self, core: Host) -> None:
        """Read from the loss what the outputs are."""
        self.loss_: Any = core.loss
        kind = outputs_of(core.loss)
        if kind not in ("softmax", "bernoulli"):
            name = getattr(core.loss, "__name__", type(core.loss).__name__) if core.loss else "the network's own"
            raise UserError(
                f"ConfidencePenalty: reads logits as torch's cross_entropy and binary_cross_entropy_with_logits do, and"
                f" the loss is {name}: give one of them as Recipe(loss=...)"
            )
        self.entropy_ = entropy if kind == "softmax" else binary_entropy

    def penalty(self, step: Step) -> Tensor | None:
        """Return the term of one micro-batch."""
        outcome = step.outcome
        if not self.alpha or outcome is None:
            return None
        logits = outcome.prediction
        lacking = -self.entropy_(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        if self.threshold is not None:
            lacking = (self.threshold + lacking).clamp_min(0)
        return self.alpha * step.ratio * mean_as_in(self.loss_, lacking, outcome.target, weight_of(step.batch))
