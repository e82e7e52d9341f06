"""Adaptive gradient clipping: a unit's gradient is bounded by the size of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from framework.errors import UserError
from framework.ops.matrices import as_matrices, as_weight
from framework.ops.patterns import Patterns, select_weights
from framework.ops.shards import is_sharded
from framework.ops.units import Units, units_by_weight
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange
from framework.settings import Positive


def clipped(gradient: Tensor, weight: Tensor, ratio: float, least: float) -> Tensor:
    r"""Return gradients whose norm is at most a share of the weights' norm, row by row.

    .. math::
        g_u \leftarrow g_u \min\!\left(1, \lambda\,\frac{\max(\lVert w_u\rVert_2, \epsilon)}{\lVert g_u\rVert_2}\right)

    Args:
        gradient: ``(…, units, inputs)``.
        weight: shaped alike.
        ratio: λ.
        least: ε, the norm that weights near 0 count as.

    Example:
        >>> clipped(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]]), ratio=0.5, least=1e-3)
        tensor([[0.3000, 0.4000]])
    """
    bound: Tensor = ratio * torch.linalg.vector_norm(weight, dim=-1, keepdim=True).clamp_min(least)
    norm: Tensor = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    return gradient * (bound / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)


class AdaptiveClipping(Plugin):
    r"""Bound the gradient of each output unit by a share of its weights' norm (AGC).

    .. math::
        g_u \leftarrow g_u \min\!\left(1, \lambda\,\frac{\max(\lVert w_u\rVert_2, \epsilon)}{\lVert g_u\rVert_2}\right)

    No step then changes a unit by much more than the learning rate times λ of its size, which allows networks without
    normalization layers large batches and rates. It comes before other clipping, such as ``Optimizer(clip_norm=...)``,
    with which it combines, and after terms on weights.

    Args:
        ratio: λ; 0.01 to 0.16, smaller for larger batches.
        weights: patterns of the weights. The source leaves out the last layer; biases and gains count each for itself.
        least: ε, so that weights that begin at 0 can grow.

    Raises:
        UserError: if a pattern matches no weight, or parameters are sharded.

    Example:
        >>> AdaptiveClipping(0.05, weights=["conv*", "hidden"]).describe()
        "AdaptiveClipping(ratio=0.05, weights=['conv*', 'hidden'])"

    Interacts with: adaptive optimizers, which scale gradients anyway; it is meant for SGD with momentum.

    Source: Brock, De, Smith and Simonyan (2021), High-performance large-scale image recognition without normalization.
    """

    ratio: Annotated[Positive, LogRange(1e-3, 1.0)] = 0.01
    weights: Patterns = "*"
    least: Positive = 1e-3

    examples = ({"ratio": 0.005}, {"ratio": 0.02, "weights": ["conv", "hidden"]})
    absent = ({"ratio": 1e12},)

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass, with the reason."""
        return {"gradcheck": "the gradient is changed, and is that of no objective"}

    def attach(self, core: Host) -> None:
        """Select the weights."""
        chosen = select_weights(core.model, self.weights, who=self.describe(), biases=True, frozen=True)
        if any(is_sharded(weight) for weight in chosen.values()):
            raise UserError(
                f"{self.describe()}: needs all weights of a unit, of which a rank has a part if parameters are sharded;"
                " use strategy='ddp'"
            )
        units = units_by_weight(core.model)
        self.chosen_: list[tuple[nn.Parameter, Units | None]] = [
            (weight, units[weight] if weight.ndim > 1 else None) for weight in chosen.values()
        ]

    def transform_gradients(self, step: Step) -> None:
        """Clip unit by unit."""
        for weight, units in self.chosen_:
            gradient = weight.grad
            if gradient is None or not weight.requires_grad:
                continue
            if units is None:  # a bias or gain of each unit
                gradient.copy_(
                    clipped(gradient.reshape(-1, 1), weight.reshape(-1, 1), self.ratio, self.least).view_as(gradient)
                )
                continue
            rows = clipped(as_matrices(gradient, units), as_matrices(weight, units), self.ratio, self.least)
            gradient.copy_(as_weight(rows, weight, units))
