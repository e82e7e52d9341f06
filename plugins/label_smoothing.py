"""Label smoothing: targets that are a little unsure."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from framework.data import MixedTarget, map_leaves, target_of
from framework.data.batch import weight_of
from framework.data.means import weighted_mean
from framework.data.mixed import loss_of
from framework.data.outputs import outputs_of
from framework.errors import UserError
from framework.plugin import Host, Plugin, Step
from framework.ranges import Range
from framework.settings import Bounds

_CLASSES, _LABELS = "cross_entropy", "binary_cross_entropy_with_logits"


def evened(loss: Any) -> tuple[Callable[[Any, Any], Tensor], bool]:
    r"""Return a loss whose targets are spread evenly over what could be, and whether it reads their values.

    .. math::
        U(\hat y) = \frac1K \sum_k L(\hat y, k) \;\text{(K classes)}, \qquad
        U(\hat y) = L(\hat y, \tfrac12) \;\text{(yes or no)}

    Args:
        loss: torch's cross-entropy, or its binary one of logits; a function, a ``functools.partial`` or a module.

    Raises:
        UserError: if it is another loss.

    Example:
        >>> even, _ = evened(nn.CrossEntropyLoss())
        >>> even(torch.zeros(1, 4), torch.tensor([2]))
        tensor(1.3863)
    """
    kind, function = outputs_of(loss), loss
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    if kind == "softmax" and name in (_CLASSES, "CrossEntropyLoss"):
        if not isinstance(loss, nn.Module):
            return functools.partial(loss, label_smoothing=1.0), False
        even: Any = copy.copy(loss)
        even.label_smoothing = 1.0
        return even, False
    if kind == "bernoulli" and name in (_LABELS, "BCEWithLogitsLoss"):
        return loss, True
    given = "the network's own" if loss is None else name
    raise UserError(
        f"LabelSmoothing: reads torch's {_CLASSES} and {_LABELS}, and the loss is {given}: give one of them as"
        " Recipe(loss=...), or smooth the targets in the loss itself"
    )


class LabelSmoothing(Plugin):
    r"""Train on targets that give a share of the certainty to what the label is not.

    .. math::
        \tilde J = (1 - \epsilon)\,J + \epsilon\,U = J + \epsilon\,(U - J), \qquad
        U = \frac1N\sum_n \frac1K\sum_k L(\hat y_n, k)

    with :math:`L(\hat y, \tfrac12)` for labels of yes or no. It is torch's ``label_smoothing`` as a term of the
    objective: class weights, ignored targets and sample weights count as in J, ε can be scheduled and tuned by its
    gradient, training curves show J itself, and validation and metrics see the clean target.

    Args:
        eps: the share ε, 0.05 to 0.2; zero adds no term.

    Raises:
        UserError: if the loss is not one of torch's cross-entropies.

    Example:
        >>> LabelSmoothing(0.2).describe()
        'LabelSmoothing(eps=0.2)'

    Interacts with:
        ``Mixup`` and ``CutMix``, whose targets are unsure already: a smaller ε serves. ``label_smoothing`` of the loss
        itself: the two combine, and validation would see that of the loss.

    Source: Szegedy et al. (2016), Rethinking the Inception architecture for computer vision; Goodfellow, Bengio and
    Courville (2016), Deep Learning, section 7.5.1.
    """

    eps: Annotated[float, Bounds(low=0, high=1, open_high=True), Range(0, 0.4)] = 0.1

    examples = ({"eps": 0.3},)
    absent = ({"eps": 0.0},)

    @property
    def proportional(self) -> Collection[str]:
        """Return the share, to which what is added is proportional."""
        return ("eps",)

    def attach(self, core: Host) -> None:
        """Derive the even loss from the recipe's."""
        self.even_, self.halves_ = evened(core.loss)

    def penalty(self, step: Step) -> Tensor | None:
        """Return ε(U - J) of one micro-batch."""
        outcome = step.outcome
        if not self.eps or outcome is None or outcome.loss is None:
            return None
        target, weight = target_of(step.batch), weight_of(step.batch)
        if self.halves_:
            target = _halves(target)
        prediction = outcome.prediction.to(torch.promote_types(outcome.prediction.dtype, torch.float32))
        if weight is None:
            even = loss_of(self.even_, prediction, target)
        else:
            even = loss_of(lambda output, one: weighted_mean(self.even_, output, one, weight)[0], prediction, target)
        return self.eps * step.ratio * (even - outcome.loss)


def _halves(target: Any) -> Any:
    clean = target.clean if isinstance(target, MixedTarget) else target
    return map_leaves(clean, lambda one: torch.full_like(one, 0.5))
