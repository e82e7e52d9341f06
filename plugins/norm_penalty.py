"""Norm penalties on weights: L2, L1, elastic net, any p-norm, group lasso, and L2-SP."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Literal, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from framework.errors import UserError, some
from framework.ops.norms import add_group_gradient, add_norm_gradient, group_norm, norm, stacked
from framework.ops.patterns import Patterns, select_weights
from framework.ops.proximal import Groups, shrink, shrink_groups
from framework.ops.shards import laid_out_as, locals_of
from framework.ops.tables import other_rows, padding_rows, without_rows
from framework.ops.units import Units, units_by_weight
from framework.ops.weights import Training, Weights, split_by_pattern
from framework.plugin import Finding, Host, Plan, Plugin, Step
from framework.ranges import LogRange
from framework.settings import Bounds, NonNegative, Probability


class NormPenalty(Plugin):
    r"""Add a norm of the weights to the objective, which keeps them small, sparse, or near their starting point.

    .. math:: \tilde J = J + \alpha\,\Omega(w)

    .. math::
        \Omega(w) = \begin{cases}
            \frac1p\sum_i |w_i|^p                                    & \text{p-norm: } \tfrac12\|w\|_2^2,\ \|w\|_1 \\
            r\|w\|_1 + \frac{1-r}2\|w\|_2^2                          & \text{elastic net, } r = \text{l1\_ratio} \\
            \sum_g \sqrt{n_g}\|w_g\|_2                               & \text{group lasso}
        \end{cases}

    with :math:`w - w_0` in place of :math:`w` if the penalty is around the starting point :math:`w_0` (L2-SP if p = 2).
    The gradient, in closed form, is added to that of the data loss once per optimizer step, and Ω itself is computed
    only when it is logged. At 0, where ‖·‖₁ and ‖·‖₂ have no gradient, 0 is used. A trainable weight that the step did
    not use gets :math:`\alpha\nabla\Omega` alone, which is the gradient of J̃; a frozen one gets nothing, and neither
    does the row of an embedding that ``padding_idx`` keeps from training. Of complex weights |w| is the absolute value.

    ``proximal`` applies the penalty's proximal operator after each update, with the learning rate η of the weight's
    parameter group, instead of adding its gradient. For p = 1 and group lasso that gives exact zeros:

    .. math:: w \leftarrow \operatorname{prox}_{\eta\alpha\Omega}(w)

    Args:
        alpha: strength α, or a mapping from patterns over weights to strengths, where the first match applies and
            weights without a match are not penalized. Try 1e-5 to 1e-3 for p = 2, 1e-6 to 1e-4 for p = 1 and groups,
            1e-3 to 1e-1 around the start.
        p: exponent of the norm, at least 1.
        l1_ratio: r of the elastic net, from 0 (L2) to 1 (L1); None for the p-norm.
        groups: group lasso over ``"rows"`` (output units) or ``"columns"`` (inputs), wherever the layer has them:
            mostly in the first and second dimension, the other way round in transposed convolutions and embeddings,
            whose columns are tokens; ``groups`` of a convolution count.
        around: ``"zero"``, or ``"start"`` for the weights at the start of the run, such as pretrained ones.
        proximal: proximal step in place of the gradient; for p = 1, p = 2, elastic net and group lasso.
        weights: patterns of the weights to penalize. They follow what is frozen and unfrozen during the run; one that
            is unfrozen starts, for ``around="start"``, at its value then.
        biases: penalize biases and norm gains too.
        scale: a factor on every α, which a :class:`~plugins.strength_schedule.StrengthSchedule` can vary.

    Raises:
        UserError: if settings contradict one another, or a pattern matches no weight.

    Example:
        >>> NormPenalty({"head.*": 0.0, "*": 1e-4}, p=1, proximal=True).describe()
        "NormPenalty(alpha={'head.*': 0.0, '*': 0.0001}, p=1, proximal=True)"

    Interacts with: clipping, which includes the penalty's gradient; adaptive optimizers, which rescale it, so that
    under Adam L2 is not decoupled decay (``Optimizer(weight_decay=...)``), while a proximal step is decoupled.

    Source: Goodfellow, Bengio and Courville (2016), Deep Learning, sections 7.1 and 7.2; Zou and Hastie (2005) for the
    elastic net; Yuan and Lin (2006) for group lasso; Li, Grandvalet and Davoine (2018) for L2-SP; Parikh and Boyd
    (2014), Proximal algorithms.
    """

    alpha: Annotated[NonNegative, LogRange(1e-6, 1e-1)] | dict[str, NonNegative]
    p: Annotated[float, Bounds(low=1)] = 2
    l1_ratio: Probability | None = None
    groups: Groups | None = None
    around: Literal["zero", "start"] = "zero"
    proximal: bool = False
    weights: Patterns = "*"
    biases: bool = False
    scale: NonNegative = 1.0

    examples = (
        {"alpha": 0.1},
        {"alpha": {"conv*": 0.05, "*": 0.02}, "p": 1},
        {"alpha": 0.05, "l1_ratio": 0.5, "biases": True},
        {"alpha": 0.05, "groups": "rows"},
        {"alpha": 0.5, "around": "start"},
        {"alpha": 0.02, "p": 1, "proximal": True},
    )
    absent = ({"alpha": 0.0},)

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass with a proximal step, with the reason."""
        return {"slope": "the proximal step takes the place of the gradient"} if self.proximal else {}

    @property
    def proportional(self) -> Collection[str]:
        """Return the strength, to which what is added is proportional."""
        return () if self.proximal else ("alpha",)

    def check(self) -> None:
        """Raise an error if settings contradict one another."""
        if isinstance(self.alpha, dict) and not self.alpha:
            raise UserError("NormPenalty(alpha={}): alpha names no weights; give a number, or {pattern: strength}")
        if self.l1_ratio is not None and self.groups is not None:
            raise UserError("NormPenalty(l1_ratio=, groups=): elastic net or group lasso; use two plugins for both")
        if self.p != 2 and (self.l1_ratio is not None or self.groups is not None):
            other = "l1_ratio" if self.groups is None else "groups"
            raise UserError(f"NormPenalty(p={self.p}, {other}=): {other} says which norm it is; leave p out")
        if self.groups is not None and self.biases:
            raise UserError("NormPenalty(groups=, biases=True): a bias has no rows or columns; leave biases out")
        if self.proximal and self.p not in (1, 2):
            raise UserError(f"NormPenalty(p={self.p}, proximal=True): no closed form for this p; use p=1 or p=2")

    def attach(self, core: Host) -> None:
        """Select the weights and store their starting point."""
        who = f"NormPenalty(weights={self.weights!r})"
        chosen = select_weights(core.model, self.weights, who=who, biases=self.biases, frozen=True)
        if isinstance(self.alpha, dict):
            self.all_ = split_by_pattern(
                core.model, chosen, self.alpha, who="NormPenalty(alpha=)", biases=self.biases, frozen=True
            )
        else:
            self.all_ = [Weights("", list(chosen), [*chosen.values()])]
        self.start_: dict[str, Tensor] = {}
        self.rows_ = padding_rows(core.model)
        self.units_ = units_by_weight(core.model) if self.groups is not None else {}
        self.training_ = Training(weight for part in self.all_ for weight in part.weights)
        self._select()

    def _select(self) -> None:
        """Choose the weights that train now; the starting point of one that was frozen so far is its value."""
        live = [part.only([weight.requires_grad for weight in part.weights]) for part in self.all_]
        self.parts_ = [part for part in live if part.weights]
        self.shares_: list[tuple[int, Weights]] | None = None
        self.pieces_: list[Weights] | None = None
        if self.around == "start":
            for part in self.parts_:
                for name, weight in part.named():
                    if name not in self.start_:
                        self.start_[name] = weight.detach().clone()
                    self.start_[name] = laid_out_as(self.start_[name].to(weight), weight)
                part.start = [self.start_[name] for name in part.names]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move the starting point to the weights' device, where Lightning has moved them."""
        if self.around == "start":
            self._select()

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Report L2 in addition to weight decay, and a norm that another plugin adds too."""
        l2 = 1.0 - self.l1_ratio if self.l1_ratio is not None else float(self.p == 2 and self.groups is None)
        both: dict[tuple[float, float], list[str]] = {}
        for name, (weight, alpha) in self._strengths().items():
            if l2 * alpha * plan.decays.get(weight, 0.0):
                both.setdefault((l2 * alpha, plan.decays[weight]), []).append(name)
        for (alpha, decay), names in both.items():
            terms = f"L2 of strength {alpha:g} and the optimizer's weight_decay of {decay:g}"
            message = (
                f"{terms} both shrink {some(names)}: one L2 of {alpha + decay:g} in all where decay joins the gradient"
                " (SGD, Adam), two rules where it is decoupled (AdamW, Muon); set one of them to 0"
            )
            if self.around == "start":
                message = f"{terms} pull {some(names)} to two places, the start and zero; set one of them to 0"
            yield Finding("warning", self.name, message)
        earlier = plan.core.plugins[: plan.core.plugins.index(self)]
        for twin in [one for one in earlier if isinstance(one, NormPenalty) and one._norm() == self._norm()]:
            if names := [name for name in self._strengths() if name in twin._strengths()]:
                message = f"the same norm as {twin.name} on {some(names)}: strengths add up; let one of them do it"
                yield Finding("warning", self.name, message)

    def _norm(self) -> tuple[object, ...]:
        return self.p, self.l1_ratio, self.groups, self.around

    def _strengths(self) -> dict[str, tuple[Tensor, float]]:
        """Return the penalized weights with their strengths, by name."""
        return {name: (w, alpha) for part in self.parts_ if (alpha := self._strength(part)) for name, w in part.named()}

    def _strength(self, part: Weights) -> float:
        return self.scale * (self.alpha[part.pattern] if isinstance(self.alpha, dict) else self.alpha)

    def weight_penalty(self, step: Step) -> Tensor:
        """Return αΩ over all weights."""
        if self.training_.changed():
            self._select()
        terms = [self._strength(part) * self._value(part) for part in self.parts_]
        return stacked([term.to(terms[0].device) for term in terms]).sum() if terms else torch.zeros(())

    def _value(self, part: Weights) -> Tensor:
        weights = self._offset(part)
        if self.groups is not None:
            return group_norm(weights, self.groups, self._units(part))
        if self.l1_ratio is not None:
            return self.l1_ratio * norm(weights, 1) + (1 - self.l1_ratio) * norm(weights, 2)
        return norm(weights, self.p)

    def _offset(self, part: Weights) -> list[Tensor]:
        """Return w - w₀, 0 in rows of embeddings that never train."""
        return without_rows(part.offset(), part.weights, self.rows_) if self.rows_ else part.offset()

    def _units(self, part: Weights) -> list[Units]:
        return [self.units_[weight] for weight in part.weights]

    @torch.no_grad()
    def weight_penalty_gradient(self, step: Step) -> None:
        """Add α∇Ω to the weights' gradients."""
        if self.proximal:
            return
        if self.training_.changed():
            self._select()
        if self.pieces_ is None:
            self.pieces_ = [piece for part in self.parts_ for piece in part.cut()]
        for part in self.pieces_:
            alpha = self._strength(part)
            if alpha:  # strength 0 is bit-identical to no penalty: not even 0 is added
                self._add_gradient(part, alpha)

    def _add_gradient(self, part: Weights, alpha: float) -> None:
        gradients = [weight.grad for weight in part.weights]
        if any(gradient is None for gradient in gradients):
            part = part.trained()
            gradients = [weight.grad for weight in part.weights]
        if sparse := [name for (name, _), g in zip(part.named(), gradients, strict=True) if cast(Tensor, g).is_sparse]:
            raise UserError(
                f"NormPenalty(weights={self.weights!r}): {some(sparse)} has sparse gradients, and a penalty acts on all"
                " rows; make the layer with sparse=False, leave the weight out by weights=, or use proximal=True"
            )
        if gradients:
            self._add_slope(cast(list[Tensor], gradients), part, alpha)

    def _add_slope(self, gradients: list[Tensor], part: Weights, alpha: float) -> None:
        if self.groups is not None:
            add_group_gradient(gradients, self._offset(part), alpha, self.groups, self._units(part))
        elif self.l1_ratio is not None:
            weights = self._offset(part)
            add_norm_gradient(gradients, weights, alpha * self.l1_ratio, 1)
            add_norm_gradient(gradients, weights, alpha * (1 - self.l1_ratio), 2)
        elif self.p == 2 and part.start and not self.rows_:  # two additions in place cost less than differences
            add_norm_gradient(gradients, part.weights, alpha, 2)
            add_norm_gradient(gradients, part.start, -alpha, 2)
        else:
            add_norm_gradient(gradients, self._offset(part), alpha, self.p)

    def after_update(self, step: Step) -> None:
        """Apply the proximal operator, with the learning rate of the update."""
        if not self.proximal:
            return
        assert step.optimizer is not None
        if self.training_.changed():
            self._select()
        groups = step.optimizer.param_groups
        if self.shares_ is None:
            owned = [share for part in self.parts_ for share in part.by_group(groups)]
            self.shares_ = [(index, piece) for index, share in owned for piece in share.cut()]
        for index, part in self.shares_:
            amount = float(groups[index]["lr"]) * self._strength(part)
            if amount:
                self._shrink(part, amount)

    def _shrink(self, part: Weights, amount: float) -> None:
        masks = {weight: other_rows(weight, self.rows_[weight]) for weight in part.weights if weight in self.rows_}
        kept = [weight.clone() for weight in locals_of(masks)]
        offset = part.offset()
        for place, weight in enumerate(part.weights):
            if weight in masks:
                offset[place].mul_(masks[weight])  # a row that never trains is in no group
        if self.groups is not None:
            shrink_groups(offset, amount, self.groups, self._units(part))
        else:
            l1 = float(self.p == 1) if self.l1_ratio is None else self.l1_ratio
            shrink(offset, amount * l1, amount * (1 - l1))
        if part.start:
            torch._foreach_copy_(part.weights, torch._foreach_add(part.start, offset))
        for weight, mask, old in zip(locals_of(masks), locals_of(masks.values()), kept, strict=True):
            weight.copy_(torch.where(mask, weight, old))

    def state_dict(self) -> dict[str, Any]:
        """Return the starting point, which a resumed run could not reconstruct."""
        start = getattr(self, "start_", {})
        return {"start": dict(start)} if start else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the starting point from a checkpoint."""
        if self.around == "start":
            start = state_dict.get("start", {})
            if absent := [name for part in self.parts_ for name in part.names if name not in start]:
                raise UserError(f"NormPenalty(around='start'): the checkpoint has no starting point of {absent[0]!r}")
            self.start_ = dict(start)
            self._select()
