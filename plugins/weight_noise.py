"""Noise on the network's weights during forward and backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from framework.errors import some
from framework.ops.noise import normals
from framework.ops.patterns import Patterns, normalized, select_weights
from framework.ops.shards import is_sharded, laid_out_as, locals_of
from framework.ops.tables import padding_rows
from framework.ops.weights import Training
from framework.plugin import Finding, Host, Plan, Plugin, Step, overrides
from framework.ranges import LogRange
from framework.settings import NonNegative

_IN_CACHE, _IN_MEMORY = 1 << 17, 1 << 24

WeightNoiseKind = Literal["gaussian", "relative"]


@torch.no_grad()
def perturb(weights: list[Tensor], std: float, noise: Tensor, kind: WeightNoiseKind = "gaussian") -> None:
    r"""Add noise to weights in place.

    .. math::
        w \leftarrow w + \sigma\varepsilon \quad\text{(gaussian)}, \qquad
        w \leftarrow w (1 + \sigma\varepsilon) \quad\text{(relative)}

    For complex weights :math:`\varepsilon = (\varepsilon_1 + i\varepsilon_2) / \sqrt2`, a complex normal number.

    Args:
        weights: tensors, changed in place.
        std: :math:`\sigma`.
        noise: a flat vector :math:`\varepsilon` with one number per entry of the weights, two where they are complex.
        kind: ``"gaussian"`` or ``"relative"``.

    Example:
        >>> w = torch.tensor([[1.0, 2.0]])
        >>> perturb([w], 0.5, torch.tensor([1.0, -1.0]), "relative"); w.tolist()
        [[1.5, 1.0]]
    """
    parts = torch.split(noise, [numbers(weight) for weight in weights])
    views = [_shaped_as(weight, part) for part, weight in zip(parts, weights, strict=True)]
    if kind == "gaussian":
        torch._foreach_add_(weights, views, alpha=std)
    else:
        torch._foreach_addcmul_(weights, weights, views, value=std)


def numbers(weight: Tensor) -> int:
    """Return how many real numbers a tensor holds."""
    return weight.numel() * (2 if weight.is_complex() else 1)


def _shaped_as(weight: Tensor, part: Tensor) -> Tensor:
    if weight.is_complex():
        return torch.view_as_complex(part.reshape(*weight.shape, 2)) * math.sqrt(0.5)
    return part if weight.ndim == 1 else part.view_as(weight)


class Share(NamedTuple):
    """Views of weights, or of rows of one weight, that get numbers ``start`` to ``start + size`` of the noise."""

    start: int
    size: int
    views: list[Tensor]


def shares_of(weights: Sequence[Tensor], limit: int) -> list[Share]:
    """Cut weights into shares of about ``limit`` entries, so that the noise of one share fits into a cache.

    Small weights are grouped, and a larger one is cut along its first dimension. A sharded weight is not cut, since
    each rank draws the noise of the whole weight.

    Example:
        >>> shares = shares_of([torch.empty(2, 3), torch.empty(4), torch.empty(3, 4)], limit=10)
        >>> [(start, size, [tuple(view.shape) for view in views]) for start, size, views in shares]
        [(0, 10, [(6,), (4,)]), (10, 8, [(8,)]), (18, 4, [(4,)])]
    """
    shares: list[Share] = []
    start, room = 0, 0
    for weight in weights:
        size, whole = numbers(weight), weight.detach()
        if is_sharded(weight):
            shares.append(Share(start, size, [whole]))
            room = 0
        elif size > limit and weight.ndim:
            width = size // len(whole)
            cuts = [_flat(rows) for rows in torch.split(whole, max(limit // width, 1))]
            ends = itertools.accumulate((numbers(cut) for cut in cuts), initial=start)
            shares += [Share(at, numbers(cut), [cut]) for at, cut in zip(ends, cuts, strict=False)]
            room = 0
        elif size <= room:
            last = shares[-1]
            shares[-1] = Share(last.start, last.size + size, [*last.views, _flat(whole)])
            room -= size
        else:
            shares.append(Share(start, size, [_flat(whole)]))
            room = limit - size
        start += size
    return shares


def _flat(weight: Tensor) -> Tensor:
    """Return a flat view, or the tensor itself if it is not contiguous."""
    return weight.view(-1) if weight.is_contiguous() else weight


class WeightNoise(Plugin):
    r"""Add noise to weights during forward and backward of each micro-batch; the update applies to the clean weights.

    .. math::
        \theta \leftarrow \theta - \eta\, g(\tilde\theta), \qquad g = \nabla J, \qquad
        \tilde w = w + \sigma\varepsilon \;\text{(gaussian)} \quad\text{or}\quad
        \tilde w = w (1 + \sigma\varepsilon) \;\text{(relative)}, \qquad \varepsilon \sim \mathcal N(0, 1)

    Relative noise has the standard deviation :math:`\sigma\lvert w\rvert` for each single weight: small weights change
    little and a weight of zero not at all. The gradient is that at :math:`\tilde\theta`, without the factor
    :math:`1 + \sigma\varepsilon` of :math:`\partial\tilde w / \partial w`: the size of the noise counts as constant.
    For small :math:`\sigma` gaussian noise adds :math:`\tfrac{\sigma^2}{2}\operatorname{tr}\nabla^2 J` to the objective
    and so favours flat minima.

    Args:
        std: :math:`\sigma`; 0.01 to 0.1 (gaussian; 0.075 for LSTMs), 0.05 to 0.3 (relative). Zero is no noise.
        kind: ``"gaussian"`` or ``"relative"``.
        weights: patterns over names of weights, names of layers or class names of layers, such as ``"LSTM"``. Frozen
            weights get no noise, also where they are frozen or unfrozen during the run, nor do padding's rows of
            embeddings.
        fresh: ``"step"``, one draw per optimizer step, the same in each micro-batch and rank, so that k micro-batches
            equal one batch; or ``"sequence"``, one draw per micro-batch and rank: with ``batch_size=1`` one draw per
            training sequence, constant from its first frame to its last.
        biases: add noise to biases and norm gains as well.

    Raises:
        UserError: if a pattern matches no weight.

    Example:
        >>> WeightNoise(0.05, weights="LSTM", fresh="sequence").describe()
        "WeightNoise(std=0.05, weights='LSTM', fresh='sequence')"

    Interacts with:
        Norm layers: in front of one, weights can grow, which makes gaussian noise negligible without changing the
        function; add a norm penalty or use relative noise.
        Penalties on weights with a closed-form gradient see the clean weights; terms from ``penalty`` the noisy ones.
        A tied weight gets noise once. Costs one copy of the weights; the noise is generated in pieces.

    Source: Jim, Giles and Horne (1996), An analysis of noise in recurrent neural networks (relative, and how often to
    draw); Graves, Mohamed and Hinton (2013), Speech recognition with deep recurrent neural networks (one draw a
    sequence, 0.075); Goodfellow, Bengio and Courville (2016), Deep Learning, section 7.5.
    """

    std: Annotated[NonNegative, LogRange(1e-3, 0.3)] = 0.075
    kind: WeightNoiseKind = "gaussian"
    weights: Patterns = "*"
    fresh: Literal["step", "sequence"] = "step"
    biases: bool = False

    examples = (
        {"std": 0.1},
        {"std": 0.3, "kind": "relative", "biases": True},
        {"std": 0.1, "weights": "LSTM", "fresh": "sequence", "in": "tokens"},
    )
    absent = ({"std": 0.0},)

    @property
    def proportional(self) -> Collection[str]:
        """Return the strength, to which what is added is proportional."""
        return ("std",)

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass with noise per micro-batch or relative to the weight, with the reason."""
        limits: dict[str, str] = {}
        if self.fresh == "sequence":
            limits |= dict.fromkeys(("micro", "ranks"), "fresh='sequence' draws for each micro-batch of each rank")
            limits["sharded"] = "fresh='sequence' draws for each rank, and ranks share one set of weights"
        if self.kind == "relative":
            limits["gradcheck"] = "the size of relative noise counts as given, though it follows the weight"
        return limits

    def attach(self, core: Host) -> None:
        """Select the weights."""
        self.all_ = select_weights(core.model, self.weights, who=self.describe(), biases=self.biases, frozen=True)
        self.training_ = Training(self.all_.values())
        self.padding_ = padding_rows(core.model)
        self._select()

    def _select(self) -> None:
        """Choose the weights that train now."""
        live = {name: weight for name, weight in self.all_.items() if weight.requires_grad}
        self.names_, self.weights_ = list(live), list(live.values())
        self.still_ = self._still()
        self.places_: list[tuple[int, torch.dtype]] = []
        self.shares_: list[Share] = []

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Report gaussian noise in front of a norm layer whose weights nothing keeps small."""
        penalized = any(overrides(other, "weight_penalty") for other in plan.core.plugins)
        if self.kind == "relative" or not self.std or penalized:
            return
        scaled = normalized(plan.core.model)
        named = zip(self.names_, self.weights_, strict=True)
        if free := [name for name, weight in named if weight in scaled and not plan.decays.get(weight)]:
            message = (
                f"gaussian noise on {some(free)} in front of a norm layer: larger weights outgrow it without any change"
                " of the function; add decay or a norm penalty, or use kind='relative'"
            )
            yield Finding("warning", self.name, message)

    def edit_weights(self, step: Step) -> None:
        """Add noise to the weights; the core restores the clean ones after backward."""
        if self.training_.changed():
            self._select()
        if not self.std or not self.weights_:
            return
        weights = step.edits.save(self.weights_)
        device, dtype = weights[0].device, weights[0].dtype.to_real()
        stream = step.stream(self.name)
        where = (step.index,) if self.fresh == "step" else (step.index, step.micro, step.rank)
        # half precision is too coarse for the noise; only the sum is rounded, once
        wide = torch.promote_types(dtype, torch.float32)
        shares = self._shares(weights)
        room = shares[-1].start + shares[-1].size
        for start, size, views in shares:
            noise = normals(stream, *where, room=room, start=start, size=size, device=device).to(wide)
            for low, high in self.still_:
                noise[max(low - start, 0) : max(high - start, 0)] = 0
            if is_sharded(views[0]):  # a rank adds its shard of the noise to its shard of the weight
                (noise,) = locals_of([laid_out_as(noise.view(views[0].shape), views[0])])
                views, noise = locals_of(views), noise.reshape(-1)
            perturb(views, self.std, noise, self.kind)

    def _still(self) -> list[tuple[int, int]]:
        """Return the ranges of the noise that belong to rows of embeddings that never train."""
        starts = itertools.accumulate(map(numbers, self.weights_), initial=0)
        owned = [(at, w) for at, w in zip(starts, self.weights_, strict=False) if w in self.padding_]
        widths = [numbers(weight) // len(weight) for _, weight in owned]
        lows = [at + self.padding_[w] * width for (at, w), width in zip(owned, widths, strict=True)]
        return [(low, low + width) for low, width in zip(lows, widths, strict=True)]

    def _shares(self, weights: list[Tensor]) -> list[Share]:
        """Return the shares, computed again if the weights have moved, such as to another device."""
        places = [(weight.data_ptr(), weight.dtype) for weight in locals_of(weights)]
        if places != self.places_:
            self.places_ = places
            self.shares_ = shares_of(weights, _IN_CACHE if weights[0].device.type == "cpu" else _IN_MEMORY)
        return self.shares_
