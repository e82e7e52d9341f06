"""Stochastic depth: residual branches that are left out for random samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor

from framework.errors import UserError, some
from framework.ops.draws import Rate
from framework.ops.noise import masked
from framework.ops.patterns import Patterns, as_patterns
from framework.ops.residual import branches, erasing
from framework.plugin import Finding, Host, Plan, Plugin, Step
from framework.ranges import Range


def shares(count: int, *, by_depth: bool) -> list[float]:
    r"""Return the share of the rate that each of :math:`L` branches gets: :math:`l / L`, or 1.

    Example:
        >>> shares(4, by_depth=True)
        [0.25, 0.5, 0.75, 1.0]
    """
    return [(place + 1) / count if by_depth else 1.0 for place in range(count)]


def drop_samples(x: Tensor, rate: float | Tensor, uniform: Tensor) -> Tensor:
    r"""Set whole samples to zero and divide the others by the probability that they stay.

    .. math:: \tilde x_n = \frac{x_n\,\mathbb 1[u_n \ge p]}{1 - p}

    Args:
        x: a tensor ``(samples, …)``.
        rate: the probability :math:`p` that a sample becomes 0.
        uniform: draws :math:`u` from [0, 1), one a sample.

    Example:
        >>> drop_samples(torch.ones(2, 2), 0.5, torch.tensor([0.4, 0.5])).tolist()
        [[0.0, 0.0], [2.0, 2.0]]
    """
    return masked(x, rate, uniform.view(-1, *[1] * (x.ndim - 1)), rescale=True)


class DropPath(Plugin):
    r"""Leave chosen residual branches out for random samples during training: stochastic depth.

    .. math:: \tilde f_l(x_n) = \frac{b_{nl}}{1 - p_l} f_l(x_n), \qquad P(b_{nl} = 0) = p_l, \qquad
        p_l = \frac lL\,p \;\text{(by depth)} \quad\text{or}\quad p_l = p

    so that of a block :math:`x + f_l(x)` the sample's :math:`x` alone is left. Branches are counted in the order in
    which the network registers them, the first chosen one as :math:`l = 1`. The mean is preserved, and evaluation uses
    :math:`f_l` itself, which the source scales by :math:`1 - p_l` there instead. Draws are keyed by layer, step and
    sample; a branch that is called several times in one forward is left out at every call or at none.

    Args:
        layers: patterns over names or class names of the layers that end a branch, before it is added: ``"*.bn2"`` of
            a ResNet, ``"blocks.*.attn, blocks.*.mlp"`` of a transformer, ``"*.dropout1, *.dropout2"`` of torch's own.
            A block that adds its input itself must not be chosen: it would lose the sample. A ``*`` matches dots too.
        rate: :math:`p` in [0, 1): 0.1 to 0.2 for 50 layers, up to 0.5 for more than 100. Zero leaves nothing out.
        by_depth: let the rate grow linearly over the chosen layers; otherwise it is the same for all.

    Raises:
        UserError: if no pattern is given or one matches no layer, where the message lists likely branches; or if the
            first dimension of an output does not run over samples, which only a network that is not compiled can tell.

    Example:
        >>> DropPath("*.bn2", 0.2).describe()
        "DropPath(layers='*.bn2', rate=0.2)"

    Interacts with:
        BatchNorm within a branch: its statistics are those of all samples, since the branch is computed for all; hence
        no time is saved. ``HiddenNoise`` on the same layer combines with it in any order.

    Source: Huang, Sun, Liu, Sedra and Weinberger (2016), Deep networks with stochastic depth, where a whole batch draws
    at once; Larsson, Maire and Shakhnarovich (2017), FractalNet; Touvron et al. (2021), Training data-efficient image
    transformers (one draw a sample).
    """

    layers: Patterns = ""
    rate: Annotated[Rate, Range(0, 0.5)] = 0.1
    by_depth: bool = True

    examples = (
        {"layers": "ReLU, Sigmoid", "rate": 0.4},
        {"layers": "LSTM", "rate": 0.3, "by_depth": False, "in": "tokens"},
    )
    absent = ({"rate": 0.0},)

    def attach(self, core: Host) -> None:
        """Select the branches."""
        try:
            if not as_patterns(self.layers):
                raise UserError(f"{self.describe()}: layers= names no residual branch")
            names = list(core.observe(self, self.layers))
        except UserError as error:
            likely = ", ".join(branches(core.model))
            found = f"likely branches of {type(core.model).__name__}: layers={likely!r}"
            none = "no likely branch was found; give the layers whose output is added to their input, as '*.mlp'"
            raise UserError(f"{error}; {found if likely else none}") from None
        self.shares_ = dict(zip(names, shares(len(names), by_depth=self.by_depth), strict=True))

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Report layers without a way around them, and layers within others."""
        names = list(self.shares_)
        inner = [name for name in names if any(name.startswith(f"{outer}.") for outer in names)]
        if inner:
            message = f"{some(inner)} lies within another chosen layer, and * matches dots too; choose one of them"
            yield Finding("warning", self.name, message)
        if lost := erasing(plan.core.model, [name for name in names if name not in inner]):
            likely = ", ".join(branches(plan.core.model))
            message = f"{some(lost)} is no residual branch: nothing goes around it, so that a sample is lost with it"
            yield Finding("warning", self.name, message + (f"; likely are layers={likely!r}" if likely else ""))

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        """Return the branch's output, 0 for the samples that it is left out for."""
        rate = step.number(self, "rate") * self.shares_[layer]
        if not isinstance(rate, Tensor) and not rate:
            return x
        if not torch.compiler.is_compiling() and len(x) != step.count:
            raise UserError(
                f"{self.describe()}: {layer} returns {tuple(x.shape)}, whose first dimension is not the micro-batch's"
                f" {step.count} samples; choose a layer that returns (samples, ...), or make it with batch_first=True"
            )
        uniform = step.uniform(self, torch.empty(len(x), device=x.device, dtype=torch.float32), layer)
        return drop_samples(x, rate, uniform)
