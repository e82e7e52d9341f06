"""Sharpness-aware minimization (SAM): the gradient at the worst weights nearby."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor

from framework.ops.patterns import Patterns, select_weights
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange
from framework.settings import NonNegative


def ascent_(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, adaptive: bool, eta: float) -> None:
    r"""Turn gradients in place into the step to the worst weights in a neighbourhood, to first order.

    .. math::

        \epsilon = \rho\, \frac{g}{\lVert g \rVert_2}, \qquad
        \epsilon_{\text{adaptive}} = \rho\, \frac{T^2 g}{\lVert T g \rVert_2}, \quad T = \lvert w \rvert + \eta

    If the gradient is zero, so are the steps.

    Args:
        weights: the weights w.
        gradients: their gradients g, of the same shapes.
        rho: radius of the neighbourhood.
        adaptive: scale the neighbourhood by the size of each weight.
        eta: added to the size of each weight, for weights near zero.

    Example:
        >>> g = [torch.tensor([3.0, 4.0])]
        >>> ascent_([torch.zeros(2)], g, 0.5, adaptive=False, eta=0.0), g
        (None, [tensor([0.3000, 0.4000])])
    """
    steps = list(gradients)
    scales = torch._foreach_abs(list(weights)) if adaptive else None
    if scales is not None:
        torch._foreach_add_(scales, eta)
        torch._foreach_mul_(steps, scales)
    norm = torch.nn.utils.get_total_norm(steps)
    torch._foreach_mul_(steps, torch.where(norm > 0, rho / norm, torch.zeros_like(norm)))
    if scales is not None:
        torch._foreach_mul_(steps, scales)


class SAM(Plugin):
    r"""Use the gradient at the worst weights nearby, which favours flat minima.

    .. math:: \theta \leftarrow \theta - \lambda\, \nabla \tilde J(\theta + \epsilon(\theta))

    with :math:`\epsilon` as in :func:`ascent_`. The gradient is evaluated twice over all micro-batches of the step,
    with the same random draws, so a step costs twice as much; running statistics and logs use the first evaluation
    only. The ascent follows the gradient of the whole step, over micro-batches and ranks (m-sharpness with m the whole
    batch).

    Interactions: exact under accumulation, mixed precision and several ranks. Terms that other plugins add once per
    update (``NormPenalty``) are not part of the ascent and count once. Excludes any other second gradient. Costs one
    copy of the weights, with ``adaptive`` a second one temporarily.

    Args:
        rho: radius of the neighbourhood; usually 0.05, or 0.5 to 2 with ``adaptive``.
        adaptive: ASAM, which is invariant to the scale of the weights.
        eta: added to the size of each weight in ASAM.
        weights: patterns of the weights to perturb.

    Example:
        >>> SAM(rho=0.1).describe()
        'SAM(rho=0.1)'

    Source:
        Foret et al. (2021), Sharpness-Aware Minimization for Efficiently Improving Generalization; Kwon et al. (2021),
        ASAM: Adaptive Sharpness-Aware Minimization.
    """

    rho: Annotated[NonNegative, LogRange(5e-3, 0.5)] = 0.05
    adaptive: bool = False
    eta: NonNegative = 0.01
    weights: Patterns = "*"

    examples = ({"rho": 0.5}, {"rho": 2.0, "adaptive": True})
    absent = ({"rho": 0.0},)

    def attach(self, core: Host) -> None:
        """Select the weights to perturb, including biases and norm gains."""
        found = select_weights(core.model, self.weights, who=self.describe(), biases=True)
        self.weights_ = list(found.values())

    def second_gradient(self, step: Step, again: Callable[[Callable[[], None]], None]) -> None:
        """Evaluate the gradient again at the worst weights nearby."""
        if self.rho == 0:
            return
        again(lambda: self._climb(step))

    def _climb(self, step: Step) -> None:
        # the first gradient is dropped when the second is evaluated, so its memory can hold the step
        moved = [weight for weight in self.weights_ if weight.grad is not None]
        steps = [weight.grad for weight in moved if weight.grad is not None]
        ascent_([weight.detach() for weight in moved], steps, self.rho, self.adaptive, self.eta)
        torch._foreach_add_(step.edits.save(moved), steps)
