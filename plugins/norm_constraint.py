"""Norm constraints on weights: max-norm and unit norm for each output unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from framework.errors import some
from framework.ops.patterns import Patterns, normalized, select_weights
from framework.ops.proximal import group_norms
from framework.ops.shards import locals_of
from framework.ops.tables import other_rows, padding_rows, tables
from framework.ops.units import Units, fan_in, units_by_weight
from framework.ops.weights import Training
from framework.plugin import Finding, Host, Plan, Plugin, Step
from framework.ranges import LogRange
from framework.settings import Positive

Constraint = Literal["max", "unit"]


@torch.no_grad()
def constrain(
    weights: Sequence[Tensor], limit: float, kind: Constraint = "max", units: Sequence[Units] | None = None
) -> None:
    r"""Scale the weight vector of each output unit in place.

    .. math::
        w_u \leftarrow w_u \min\Bigl(1, \frac{c}{\|w_u\|_2}\Bigr) \;\text{(max)}, \qquad
        w_u \leftarrow w_u \frac{c}{\|w_u\|_2} \;\text{(unit)}

    A vector of zeros stays as it is, and so does bit for bit one within the limit of max. Lengths are at least float32.

    Args:
        weights: tensors of at least two dimensions, changed in place.
        limit: :math:`c`.
        kind: ``"max"`` or ``"unit"``.
        units: where each weight has its output units; by default in the first dimension.

    Example:
        >>> w = torch.tensor([[3.0, 4.0], [0.6, 0.8]])
        >>> constrain([w], 2.5); w.tolist()
        [[1.5, 2.0], [0.6000000238418579, 0.800000011920929]]
    """
    if not weights:
        return
    places = [Units()] * len(weights) if units is None else units
    wide = [w.float() if w.dtype in (torch.float16, torch.bfloat16) else w for w in weights]
    counts = [fan_in(weight, where) for weight, where in zip(weights, places, strict=True)]
    factors = []
    for rms, count in zip(group_norms(wide, "rows", weigh=False, units=places), counts, strict=True):
        length = rms * count**0.5
        least = max(limit, 1.0) * torch.finfo(length.dtype).tiny  # below it, the factor would overflow
        factor = limit / length.clamp_min(least)
        factors.append(factor.clamp_max(1.0) if kind == "max" else torch.where(length < least, 1.0, factor))
    torch._foreach_mul_(list(weights), factors)


class NormConstraint(Plugin):
    r"""Scale the incoming weights of each output unit to a given length, or to at most that, after every update.

    .. math::
        w_u \leftarrow w_u \min\Bigl(1, \frac{c}{\|w_u\|_2}\Bigr) \;\text{(max)}, \qquad
        w_u \leftarrow w_u \frac{c}{\|w_u\|_2} \;\text{(unit)}

    Max-norm is the projection on the ball of radius c: weights cannot grow large, however high the learning rate is,
    and other than under a penalty those within the ball are left alone. Under unit norm only directions are learned.
    Each matrix counts on its own, so an LSTM's gate has one vector over its inputs and one over its state. Of an
    embedding each token's vector is scaled, as by torch's ``max_norm``; the row of ``padding_idx`` stays as it is.

    Args:
        limit: :math:`c`; 3 to 4 for max-norm with dropout in the source, lower for small layers; 1 for unit norm.
        kind: ``"max"`` or ``"unit"``.
        weights: patterns of the weights, such as ``"Linear"`` or ``"conv*"``. Biases and gains are left alone, and so
            are frozen weights until they are thawed. ``"*"`` matches every parameter of two and more dimensions, also
            one that is no map, such as a table of positions: give patterns for a network with such parameters.

    Raises:
        UserError: if a setting is out of bounds, or a pattern matches no weight.

    Example:
        >>> NormConstraint(3.0, weights="Linear").describe()
        "NormConstraint(limit=3.0, weights='Linear')"

    Interacts with:
        Norm layers right after the weight, and weight normalization, undo the scaling: there it changes nothing but the
        size of later steps. A proximal ``NormPenalty`` shrinks what it finds: place it before a unit norm.
        ``WeightAverage`` stands after it and averages scaled weights, whose mean is within the limit of max too. The
        optimizer's state, such as momentum, is not scaled.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), Dropout, section 5.1 (max-norm);
    Srebro and Shraibman (2005), Rank, trace-norm and max-norm; Salimans and Kingma (2016), Weight normalization.
    """

    limit: Annotated[Positive, LogRange(0.5, 8)]
    kind: Constraint = "max"
    weights: Patterns = "*"

    examples = (
        {"limit": 0.5},
        {"limit": 1.0, "kind": "unit"},
        {"limit": 0.6, "in": "tokens"},
    )
    absent = ({"limit": 1e9}, None, {"limit": 1e9})

    before = {"WeightAverage": "it averages the weights as they are after the constraint"}

    def attach(self, core: Host) -> None:
        """Select the weights."""
        self.all_ = select_weights(core.model, self.weights, who=self.describe(), frozen=True)
        self.training_ = Training(self.all_.values())
        units, rows = units_by_weight(core.model), tables(core.model)
        self.units_ = {weight: Units() if weight in rows else units[weight] for weight in self.all_.values()}
        self.padding_ = padding_rows(core.model)
        self._select()

    def _select(self) -> None:
        """Choose the weights that train now."""
        self.weights_ = [weight for weight in self.all_.values() if weight.requires_grad]

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Report weights whose length has no effect on the function."""
        model = plan.core.model
        scaled, known = normalized(model), {name for name, _ in model.named_parameters()}
        lengths = {
            name: {f"{name[:-1]}g", f"{name[:-1]}0"} for name in self.all_ if name.endswith(("_v", ".original1"))
        }
        undone = {
            "a norm layer right after them": [name for name, weight in self.all_.items() if weight in scaled],
            "weight normalization": [name for name, gain in lengths.items() if gain & known],
        }
        for what, names in undone.items():
            if names:
                message = f"{what} undoes the scaling of {some(names)}; choose other weights by weights="
                yield Finding("warning", self.name, message)

    def after_update(self, step: Step) -> None:
        """Scale the weights."""
        if self.training_.changed():
            self._select()
        fixed = [weight for weight in self.weights_ if weight in self.padding_]
        kept = [weight.clone() for weight in locals_of(fixed)]
        constrain(self.weights_, self.limit, self.kind, [self.units_[weight] for weight in self.weights_])
        masks = locals_of([other_rows(weight, self.padding_[weight]) for weight in fixed])
        for weight, old, mask in zip(locals_of(fixed), kept, masks, strict=True):
            weight.copy_(torch.where(mask, weight, old))
