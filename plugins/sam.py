"""Sharpness-aware minimization."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from framework import Core, Plugin, Step
from framework.ops.patterns import Patterns, select_weights
from framework.settings import NonNegative


def ascent_(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, adaptive: bool, eta: float) -> None:
    r"""Turn gradients in place into the step to the worst weights nearby, to first order.

    .. math::

        \epsilon = \rho\, \frac{g}{\lVert g \rVert_2}, \qquad
        \epsilon_{\text{adaptive}} = \rho\, \frac{T^2 g}{\lVert T g \rVert_2}, \quad T = \lvert w \rvert + \eta

    The steps are all zero where the gradient is.

    Args:
        weights: the weights w.
        gradients: their gradients g, shaped alike.
        rho: radius of the neighbourhood.
        adaptive: measure the neighbourhood relative to each weight's size.
        eta: added to the size of weights near zero.

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
    r"""Takes the gradient at the worst weights nearby, which prefers flat minima.

    .. math:: \theta \leftarrow \theta - \lambda\, \nabla \tilde J(\theta + \epsilon(\theta))

    with :math:`\epsilon` as in :func:`ascent_`. The gradient is evaluated twice over all micro-batches of the step,
    with the same random draws, so a step costs two; running statistics and logs see the first evaluation alone. It is
    the whole step's gradient that is followed, over micro-batches and ranks (m-sharpness with m the whole batch).

    Interactions: exact under accumulation, mixed precision and ranks. Terms that other plugins add once an update
    (``NormPenalty``) are not part of the ascent and count once. Takes the place of any other second gradient. Costs one
    copy of the weights, with ``adaptive`` another for a moment.

    Args:
        rho: radius; 0.05 as a rule, 0.5 to 2 with ``adaptive``.
        adaptive: ASAM, whose radius does not depend on the scale of the weights.
        eta: ASAM's floor of a weight's size.
        weights: patterns of the weights to perturb.

    Example:
        >>> SAM(rho=0.1).describe()
        'SAM(rho=0.1)'

    Source:
        Foret et al. (2021), Sharpness-Aware Minimization for Efficiently Improving Generalization; Kwon et al. (2021),
        ASAM: Adaptive Sharpness-Aware Minimization.
    """

    rho: NonNegative = 0.05
    adaptive: bool = False
    eta: NonNegative = 0.01
    weights: Patterns = "*"

    examples = ({"rho": 0.5}, {"rho": 2.0, "adaptive": True})
    absent = ({"rho": 0.0},)

    def attach(self, core: Core) -> None:
        """Find the weights to perturb, biases and norm gains included."""
        found = select_weights(core.model, self.weights, who=self.describe(), biases=True)
        self.weights_ = list(found.values())

    def second_gradient(self, step: Step, again: Callable[[Callable[[], None]], None]) -> None:
        """Evaluate the gradient again at the worst weights nearby."""
        if self.rho == 0:
            return
        again(lambda: self._climb(step))

    def _climb(self, step: Step) -> None:
        # the first gradient is dropped when the second is evaluated, and so serves as the step: no copy of its size
        moved = [weight for weight in self.weights_ if weight.grad is not None]
        steps = [weight.grad for weight in moved if weight.grad is not None]
        ascent_([weight.detach() for weight in moved], steps, self.rho, self.adaptive, self.eta)
        torch._foreach_add_(step.edits.save(moved), steps)
