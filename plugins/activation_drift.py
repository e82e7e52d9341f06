"""Penalties on the outputs of recurrent layers: their size, and how far they move from one position to the next."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import torch
from torch import Tensor

from framework.errors import UserError
from framework.ops.patterns import Patterns
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange
from framework.settings import NonNegative


def size(h: Tensor) -> Tensor:
    r"""Return the mean square of activations, :math:`\frac1{N T d}\sum_{ntj} h_{ntj}^2`.

    Example:
        >>> size(torch.tensor([[[1.0, 3.0]]]))
        tensor(5.)
    """
    return h.square().mean()


def drift(h: Tensor) -> Tensor:
    r"""Return the mean square of changes from one position to the next; 0 for a single position.

    .. math:: \frac1{N (T - 1) d}\sum_{n}\sum_{t=1}^{T-1}\sum_j (h_{n,t+1,j} - h_{n,t,j})^2

    Args:
        h: ``(samples, positions, units)``.

    Example:
        >>> drift(torch.tensor([[[1.0], [3.0], [3.0]]]))
        tensor(2.)
    """
    return h.diff(dim=1).square().mean() if h.shape[1] > 1 else h.new_zeros(())


class ActivationDrift(Plugin):
    r"""Keep the outputs of recurrent layers small (AR) and slow (TAR).

    .. math::
        \alpha\,\frac1{NTd}\sum_{ntj} h_{ntj}^2 + \beta\,\frac1{N(T-1)d}\sum_{ntj} (h_{n,t+1,j} - h_{n,t,j})^2

    summed over layers. The source measures the first on outputs after dropout and the second before it: place
    ``HiddenNoise`` on the same layers after this plugin for the second, before it for the first. Padding counts as
    positions: leave it out by shorter batches (``Data(lengths=...)``).

    Args:
        alpha: strength α of the size; 0.5 to 5, 2 in the source.
        beta: strength β of the drift; 0.5 to 5, 1 in the source.
        layers: patterns over names or class names of layers whose output is ``(samples, positions, units)``, or a
            tuple that begins with it, as that of an LSTM with ``batch_first=True``.

    Raises:
        UserError: if a pattern matches no layer, or a layer's output has other dimensions.

    Example:
        >>> ActivationDrift(beta=2.0).describe()
        'ActivationDrift(beta=2.0)'

    Interacts with: ``WeightNoise`` on recurrent weights, whose noise the term damps.

    Source: Merity, McCann and Socher (2017), Revisiting activation regularization for language RNNs; Merity, Keskar
    and Socher (2018), Regularizing and optimizing LSTM language models.
    """

    alpha: Annotated[NonNegative, LogRange(0.01, 10)] = 2.0
    beta: Annotated[NonNegative, LogRange(0.01, 10)] = 1.0
    layers: Patterns = "LSTM"

    examples = (
        {"layers": "LSTM", "in": "tokens"},
        {"alpha": 0.0, "beta": 5.0, "layers": "LSTM", "in": "tokens"},
    )
    absent = ({"alpha": 0.0, "beta": 0.0},)

    @property
    def proportional(self) -> Collection[str]:
        """Return the strength, to which what is added is proportional, if there is a single one."""
        return ("alpha",) if not self.beta else ("beta",) if not self.alpha else ()

    def attach(self, core: Host) -> None:
        """Select the layers."""
        core.observe(self, self.layers)
        self.seen_: list[Tensor] = []
        self.again_ = 0

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Drop outputs that the last micro-batch left over, such as those that activation checkpointing ran again."""
        self.seen_.clear()
        self.again_ = step.again
        return batch

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        """Keep the output for :meth:`penalty`."""
        if x.ndim != 3:
            raise UserError(
                f"{self.describe()}: the output of {layer} has shape {tuple(x.shape)}, and must be (samples, positions,"
                " units); choose a recurrent layer with batch_first=True by layers="
            )
        if step.again == self.again_:
            self.seen_.append(x)
        return x

    def penalty(self, step: Step) -> dict[str, Tensor] | None:
        """Return both terms of one micro-batch."""
        seen = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in self.seen_]
        self.seen_.clear()
        terms = {"size": (self.alpha, size), "drift": (self.beta, drift)}
        found = {
            name: strength * torch.stack([function(x) for x in seen]).sum()
            for name, (strength, function) in terms.items()
            if strength and seen
        }
        return found or None
