"""Penalties on weights as matrices: orthogonality, spectral norm, nuclear norm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Annotated, Literal

import torch
from torch import Tensor

from framework.ops.matrices import as_matrices, as_weight, nuclear, orthogonality, spectral
from framework.ops.patterns import Patterns, select_weights
from framework.ops.shards import refuse_shards
from framework.ops.units import units_by_weight
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange
from framework.settings import NonNegative

MatrixKind = Literal["orthogonal", "spectral", "nuclear"]

_FUNCTIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "orthogonal": orthogonality,
    "spectral": spectral,
    "nuclear": nuclear,
}


class MatrixPenalty(Plugin):
    r"""Add a function of the singular values σ of each weight matrix to the objective.

    .. math::
        \alpha\Omega = \alpha \sum_W \begin{cases}
            \tfrac12 \sum_i (\sigma_i^2 - 1)^2 = \tfrac12\lVert W W^\top - I\rVert_F^2 & \text{orthogonal} \\
            \tfrac12\, \sigma_1^2                                                      & \text{spectral} \\
            \sum_i \sigma_i = \lVert W\rVert_*                                         & \text{nuclear}
        \end{cases}

    **orthogonal** keeps the units of a layer different and signals at their size; **spectral** bounds by how much a
    layer can amplify a change of its input; **nuclear** makes a matrix of low rank. A matrix has a row for each output
    unit, and the positions of a kernel among its columns; of rows and columns the fewer are made orthonormal. The
    gradient, in closed form, is added once per optimizer step, so that it is exact under accumulation, mixed precision
    and any number of ranks.

    Args:
        alpha: strength α; 1e-4 to 1e-2.
        kind: which function. ``"spectral"`` and ``"nuclear"`` take a singular value decomposition of each weight in
            each step, which is slow for layers of thousands of units.
        weights: patterns of the weights to penalize.

    Raises:
        UserError: if a pattern matches no weight, or parameters are sharded.

    Example:
        >>> MatrixPenalty(1e-3, "spectral").describe()
        "MatrixPenalty(alpha=0.001, kind='spectral')"

    Interacts with: weight decay, which pulls singular values to 0 and not to 1; a normalization layer behind a weight,
    which makes its size, though not its directions, ineffective.

    Source: Brock et al. (2017), Neural photo editing with introspective adversarial networks (orthogonal); Yoshida and
    Miyato (2017), Spectral norm regularization for improving the generalizability of deep learning (spectral); Fazel
    (2002), Matrix rank minimization with applications (nuclear).
    """

    alpha: Annotated[NonNegative, LogRange(1e-5, 1e-1)]
    kind: MatrixKind = "orthogonal"
    weights: Patterns = "*"

    examples = (
        {"alpha": 0.01},
        {"alpha": 0.05, "kind": "spectral"},
        {"alpha": 0.01, "kind": "nuclear", "weights": "head*"},
    )
    absent = ({"alpha": 0.0},)

    @property
    def proportional(self) -> Collection[str]:
        """Return the strength, to which what is added is proportional."""
        return ("alpha",)

    def attach(self, core: Host) -> None:
        """Select the weights."""
        who = f"MatrixPenalty(weights={self.weights!r})"
        units = units_by_weight(core.model)
        chosen = select_weights(core.model, self.weights, who=who, frozen=True)
        refuse_shards(chosen.values(), self.describe())
        self.chosen_ = [(weight, units[weight]) for weight in chosen.values()]

    def _terms(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield each weight that trains, its Ω, and the gradient of that."""
        for weight, units in self.chosen_:
            if weight.requires_grad:
                wide = torch.promote_types(weight.dtype, torch.float32)
                value, gradient = _FUNCTIONS[self.kind](as_matrices(weight.to(wide), units))
                yield weight, value, as_weight(gradient, weight, units)

    def weight_penalty(self, step: Step) -> Tensor:
        """Return αΩ over all weights."""
        values = [value for _, value, _ in self._terms()]
        return self.alpha * torch.stack(values).sum() if values else torch.zeros(())

    @torch.no_grad()
    def weight_penalty_gradient(self, step: Step) -> None:
        """Add α∇Ω to the weights' gradients."""
        if not self.alpha:  # strength 0 is bit-identical to no penalty: not even 0 is added
            return
        for weight, _, gradient in self._terms():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.add_(gradient.to(weight.grad.dtype), alpha=self.alpha)
