"""Activation sparsity: penalties and k-winners that keep few units of a layer active."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from framework.errors import UserError
from framework.ops.patterns import Patterns, select_layers
from framework.ops.rates import kl, rows_of_units
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange
from framework.settings import Bounds, NonNegative, PositiveInt

SparsityKind = Literal["l1", "kl", "k_winners"]
OpenRate = Annotated[float, Bounds(low=0, high=1, open_low=True, open_high=True)]
Share = Annotated[float, Bounds(low=0, high=1, open_low=True)]


def l1(h: Tensor, samples: int) -> Tensor:
    r"""Return the L1 norm of activations, averaged over samples and summed over units.

    .. math:: \frac1N \sum_{n=1}^N \lVert h^{(n)}\rVert_1

    Example:
        >>> l1(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), samples=2)
        tensor(3.)
    """
    return h.abs().sum() / samples


def k_winners(h: Tensor, k: int | float) -> Tensor:
    r"""Keep the k largest activations of each row and set the others to 0.

    .. math:: \tilde h_j = h_j\,\mathbb 1[h_j \text{ is among the } k \text{ largest of its row}]

    The gradient flows to the kept entries. Among ties, as many are kept as make k.

    Args:
        h: activations; rows as :func:`rows_of_units` has them.
        k: number of entries, or as a ``float`` the share of the units, rounded up.

    Example:
        >>> k_winners(torch.tensor([[1.0, 3.0, 2.0, -4.0]]), 2).tolist()
        [[0.0, 3.0, 2.0, 0.0]]
    """
    rows = rows_of_units(h)
    count = k if isinstance(k, int) else math.ceil(k * rows.shape[1])
    winners, where = rows.topk(count, dim=1, sorted=False)
    return torch.zeros_like(rows).scatter(1, where, winners).view_as(h)


class ActivationSparsity(Plugin):
    r"""Keep few units of the chosen layers active.

    .. math::
        \alpha\Omega = \alpha\,\frac1N \sum_{n=1}^N \lVert h^{(n)}\rVert_1 \;\text{(l1)}, \qquad
        \alpha\Omega = \alpha \sum_j \operatorname{KL}(\rho \,\Vert\, \hat\rho_j) \;\text{(kl)}, \qquad
        \tilde h = \text{the } k \text{ largest of } h \;\text{(k\_winners)}

    summed over layers, and over calls if a layer is called several times. Terms are computed in float32. On logged
    steps ``sparsity/<layer>`` is the fraction of active units, :math:`\lvert h\rvert > \tau`.

    **kl** treats :math:`h_j` as a firing rate: activations must lie in [0, 1] (sigmoid, softmax, hard sigmoid), else
    the first step or the next logged one stops the run. :math:`\hat\rho_j` is the mean over *one micro-batch of one
    rank*, so it is the only kind that depends on how a step is cut: k micro-batches give the mean of their divergences,
    which is at least the divergence of the whole batch. Use a large batch rather than accumulation.

    **k_winners** is a part of the network, not a term of the objective: it applies in training and evaluation alike, as
    forward hooks that ``prepare_model`` registers on the layers. State-dict keys do not change; a copy of the network
    that loads the weights without this framework must call :func:`k_winners` itself.

    Args:
        alpha: :math:`\alpha` of l1 (1e-5 to 1e-3) and kl (1e-3 to 1); None with k_winners. Zero adds no term.
        layers: patterns over names or class names of layers; choose nonlinearities.
        kind: ``"l1"``, ``"kl"`` or ``"k_winners"``.
        rho: target rate of kl, in (0, 1).
        k: entries that k_winners keeps in each row, a whole number, or a share in (0, 1], such as 0.1; None with l1 and
            kl.
        threshold: :math:`\tau`, used for logging only; 0 suits ReLU, 0.1 a sigmoid.

    Raises:
        UserError: if the strength does not belong to the kind, a pattern matches no layer, a layer runs without
            gradients or its output is overwritten in place, activations leave [0, 1] under kl, or k exceeds the number
            of units of a layer.

    Example:
        >>> ActivationSparsity(1e-4, "encoder.*").describe()
        "ActivationSparsity(alpha=0.0001, layers='encoder.*')"
        >>> ActivationSparsity(kind="k_winners", k=0.1).describe()
        "ActivationSparsity(kind='k_winners', k=0.1)"

    Interacts with:
        ``HiddenNoise`` at the same layer: later in the recipe, its noise comes after the activations are measured.
        A layer norm or batch norm after the layer lets activations shrink without changing the function.

    Source: Goodfellow, Bengio and Courville (2016), Deep Learning, section 7.10 (l1); Lee, Ekanadham and Ng (2008),
    Sparse deep belief net model for visual area V2, and Ng (2011), CS294A lecture notes: Sparse autoencoder (kl);
    Makhzani and Frey (2014), k-Sparse autoencoders (k_winners).
    """

    alpha: Annotated[NonNegative, LogRange(1e-6, 1e-2)] | None = None
    layers: Patterns = "ReLU"
    kind: SparsityKind = "l1"
    rho: Annotated[OpenRate, LogRange(0.01, 0.3)] = 0.05
    k: PositiveInt | Share | None = None
    threshold: NonNegative = 0.0

    examples = (
        {"alpha": 0.01},
        {"alpha": 0.1, "layers": "Sigmoid", "kind": "kl"},
        {"kind": "k_winners", "k": 0.25},
    )
    absent = ({"alpha": 0.0}, {"alpha": 0.0}, {"k": 1.0})

    read_once = ("k",)

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass, with the reason: means over one micro-batch, or a changed network."""
        if self.kind == "kl":
            return dict.fromkeys(("micro", "ranks"), "mean activations are over one micro-batch of one rank")
        within = dict.fromkeys(("eval", "leftovers"), "k_winners is a part of the network")
        return within if self.kind == "k_winners" else {}

    @property
    def idle(self) -> Collection[str]:
        """Return the settings of another kind."""
        return () if self.kind == "kl" else ("rho",)

    @property
    def proportional(self) -> Collection[str]:
        """Return the strength, to which what is added is proportional."""
        return () if self.kind == "k_winners" else ("alpha",)

    def check(self) -> None:
        """Check that the kind's strength is given, and that of the other kinds is not."""
        wanted, other, example = ("k", "alpha", 0.1) if self.kind == "k_winners" else ("alpha", "k", 1e-4)
        if getattr(self, wanted) is None:
            raise UserError(f"ActivationSparsity(kind={self.kind!r}, {wanted}=None): give {wanted}=, such as {example}")
        if getattr(self, other) is not None:
            raise UserError(
                f"ActivationSparsity(kind={self.kind!r}, {other}={getattr(self, other)!r}): {self.kind} does not read"
                f" {other}; leave it out"
            )

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Register k_winners as forward hooks of the chosen layers."""
        if self.k is not None:
            for name, layer in select_layers(model, self.layers, who=self.describe()).items():
                who = f"{self.describe()}: {name}"
                layer.register_forward_hook(functools.partial(_keep_winners, k=self.k, who=who))
        return model

    def attach(self, core: Host) -> None:
        """Select the layers to observe."""
        layers = core.observe(self, self.layers)
        self.logits_: dict[str, Tensor] = {}
        for handle in getattr(self, "handles_", []):
            handle.remove()
        self.handles_: list[RemovableHandle] = [
            layer.register_forward_pre_hook(_Logits(self.logits_, name))
            for name, layer in layers.items()
            if self.kind == "kl" and type(layer) is nn.Sigmoid
        ]
        self.seen_: list[_Seen] = []
        self.again_ = 0
        self.active_: dict[str, tuple[Tensor, int]] = {}

    def begin_step(self, step: Step) -> None:
        """Reset the count of active units."""
        self.active_.clear()

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Drop outputs that the last micro-batch left over."""
        # left by a forward that raised, or by activation checkpointing, which reruns layers in backward
        self.seen_.clear()
        self.again_ = step.again
        return batch

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        """Keep the output for :meth:`penalty`."""
        z = self.logits_.pop(layer, None)
        # only the micro-batch's own forward counts, not another plugin's second evaluation of it
        if (self.alpha or step.logged) and step.again == self.again_:
            if z is not None and type(x.grad_fn).__name__ != "SigmoidBackward0":
                z = None  # an earlier plugin has changed what the layer gave
            self.seen_.append(_Seen(layer, x, x._version, torch.is_grad_enabled(), z, -1 if z is None else z._version))
        return x

    def penalty(self, step: Step) -> Tensor | None:
        r"""Return :math:`\alpha\Omega` of one micro-batch."""
        seen, self.seen_ = self.seen_, []
        if not seen:
            return None
        self._check_unchanged(seen)
        if step.logged and not step.again:
            self._log(seen, step)
        if not self.alpha:
            return None
        self._check_gradients(seen)
        activations = [one.x.to(torch.promote_types(one.x.dtype, torch.float32)) for one in seen]
        if self.kind == "l1":
            terms = [l1(x, step.count) for x in activations]
        else:
            if step.index == 0 or step.logged:  # rarely, since the check synchronizes with the device
                self._check_rates(seen)
            logits = [
                None if one.z is None or one.z._version != one.z_version else one.z.to(x)
                for one, x in zip(seen, activations, strict=True)
            ]
            terms = [kl(x, self.rho, z) for x, z in zip(activations, logits, strict=True)]
        return self.alpha * functools.reduce(torch.add, terms)

    @torch.no_grad()
    def _log(self, seen: list[_Seen], step: Step) -> None:
        for layer, x, *_ in seen:
            active, entries = self.active_.get(layer, (x.new_zeros((), dtype=torch.int64), 0))
            self.active_[layer] = active + (x.abs() > self.threshold).sum(), entries + x.numel()
        for layer, (active, entries) in self.active_.items():
            step.record(f"sparsity/{layer}", active / entries)

    def _check_unchanged(self, seen: list[_Seen]) -> None:
        for layer, x, version, *_ in seen:
            if x._version != version:
                raise UserError(
                    f"{self.describe()}: the output of {layer} is overwritten in place by the layer after it (such as"
                    " ReLU(inplace=True)); choose that layer"
                )

    def _check_gradients(self, seen: list[_Seen]) -> None:
        for layer in [one.layer for one in seen if not one.graph]:
            if not any(one.graph for one in seen if one.layer == layer):
                raise UserError(
                    f"{self.describe()}: {layer} runs without gradients, where a term on it has no effect; choose other"
                    " layers, or for activation checkpointing use_reentrant=False"
                )

    def _check_rates(self, seen: list[_Seen]) -> None:
        for layer, x, *_ in seen:
            low, high = x.aminmax()
            if low < 0 or high > 1:
                raise UserError(
                    f"{self.describe()}: {layer} has activations from {low:.3g} to {high:.3g}, and rates lie in [0, 1];"
                    " choose a layer such as Sigmoid, or kind='l1'"
                )


class _Seen(NamedTuple):
    layer: str
    x: Tensor
    version: int
    graph: bool
    z: Tensor | None
    z_version: int


class _Logits:
    """A forward pre-hook of a sigmoid that keeps its input; in a copy of the layer it does nothing."""

    def __init__(self, kept: dict[str, Tensor], layer: str) -> None:
        self._kept, self._layer = kept, layer

    def __call__(self, module: nn.Module, args: Any) -> None:
        if args and torch.is_grad_enabled():
            self._kept[self._layer] = args[0]

    def __reduce__(self) -> Any:
        return _Logits, ({}, "")


def _keep_winners(layer: nn.Module, args: Any, output: Any, *, k: int | float, who: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise UserError(f"{who} returns {type(output).__name__}, not a tensor; choose the nonlinearity after it")
    units = rows_of_units(output).shape[1]
    if k > units:
        raise UserError(f"{who} has {units} units; k must be at most that")
    return k_winners(output, k)
