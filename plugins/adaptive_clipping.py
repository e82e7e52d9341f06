"""Adaptive gradient clipping: a unit's gradient is bounded by the size of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor

from framework.errors import UserError
from framework.ops.matrices import as_matrices, as_weight
from framework.ops.patterns import Patterns, as_patterns, select_parameters, select_weights
from framework.ops.shards import refuse_shards
from framework.ops.units import units_by_weight
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange
from framework.settings import Positive


def clipped(gradient: Tensor, weight: Tensor, ratio: float, least: float) -> Tensor:
    r"""Return gradients whose norm is at most a share of the weights' norm, row by row.

    .. math::
        g_u \leftarrow g_u \min\!\left(1, \lambda\,\frac{\max(\lVert w_u\rVert_2, \epsilon)}{\lVert g_u\rVert_2}\right)

    Args:
        gradient: ``(…, units, inputs)``; bit for bit as it is where it is within the bound.
        weight: shaped alike.
        ratio: λ.
        least: ε, the norm that weights near 0 count as.

    Example:
        >>> clipped(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]]), ratio=0.5, least=1e-3)
        tensor([[0.3000, 0.4000]])
    """
    wide = torch.promote_types(weight.dtype, torch.float32)  # half precision has no room for squares and small bounds
    bound: Tensor = ratio * torch.linalg.vector_norm(weight, dim=-1, keepdim=True, dtype=wide).clamp_min(least)
    norm: Tensor = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True, dtype=wide)
    share = (bound / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
    return (gradient * share).to(gradient.dtype)


class AdaptiveClipping(Plugin):
    r"""Bound the gradient of each output unit by a share of its weights' norm (AGC).

    .. math::
        g_u \leftarrow g_u \min\!\left(1, \lambda\,\frac{\max(\lVert w_u\rVert_2, \epsilon)}{\lVert g_u\rVert_2}\right)

    No step of SGD without momentum then changes a unit by more than the learning rate times λ of its size, which allows
    networks without normalization layers large batches and rates. It comes after terms on weights and before other
    clipping, such as ``Optimizer(clip_norm=...)``, with which it combines: that sees the gradient bounded here. Of an
    embedding a unit is an entry of the vectors, as of the linear map that it is.

    Args:
        ratio: λ; 0.01 to 0.16, smaller for larger batches.
        weights: patterns of the weights, biases and gains included. Of these each entry counts for itself, as its
            unit's; the source's code takes all entries of one together.
        least: ε, so that weights that begin at 0 can grow.
        without: patterns of weights to leave out of these; the source leaves out the last layer, such as ``"head"``.

    Raises:
        UserError: if a pattern matches no weight, none is left, a gradient is sparse, or parameters are sharded.

    Example:
        >>> AdaptiveClipping(0.05, without="head").describe()
        "AdaptiveClipping(ratio=0.05, without='head')"

    Interacts with: adaptive optimizers, which scale gradients anyway; it is meant for SGD with momentum. Plugins that
    change gradients do so in the order of the recipe: after ``GradientNoise``, it bounds the noise too.

    Source: Brock, De, Smith and Simonyan (2021), High-performance large-scale image recognition without normalization.
    """

    ratio: Annotated[Positive, LogRange(1e-3, 1.0)] = 0.01
    weights: Patterns = "*"
    least: Positive = 1e-3
    without: Patterns = ()

    examples = ({"ratio": 0.005}, {"ratio": 0.02, "without": "head"})
    absent = ({"ratio": 1e12},)

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass, with the reason."""
        return {"gradcheck": "the gradient is changed, and is that of no objective"}

    def attach(self, core: Host) -> None:
        """Select the weights."""
        who, model = self.describe(), core.model
        chosen = select_weights(model, self.weights, who=who, biases=True, frozen=True)
        if as_patterns(self.without):
            out = select_parameters(model, self.without, who=who)
            chosen = {name: weight for name, weight in chosen.items() if name not in out}
            if not chosen:
                raise UserError(f"{who}: without= leaves no weight to clip; let it match fewer")
        refuse_shards(chosen.values(), who)
        units = units_by_weight(model)
        self.chosen_ = {name: (weight, units[weight]) for name, weight in chosen.items()}

    def transform_gradients(self, step: Step) -> None:
        """Clip unit by unit."""
        for name, (weight, units) in self.chosen_.items():
            gradient = weight.grad
            if gradient is None or not weight.requires_grad:
                continue
            if gradient.is_sparse:
                raise UserError(
                    f"{self.describe()}: {name} has sparse gradients, and a unit takes a part of all rows; make the"
                    f" layer with sparse=False, or leave it out by without={name!r}"
                )
            if weight.ndim < 2:  # a bias or gain of each unit
                rows = clipped(gradient.reshape(-1, 1), weight.reshape(-1, 1), self.ratio, self.least)
                gradient.copy_(rows.view_as(gradient))
            else:
                rows = clipped(as_matrices(gradient, units), as_matrices(weight, units), self.ratio, self.least)
                gradient.copy_(as_weight(rows, weight, units))
