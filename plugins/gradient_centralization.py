"""Gradient centralization: gradients of mean zero, unit by unit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from framework.errors import UserError
from framework.ops.patterns import Patterns, select_weights
from framework.ops.shards import is_sharded
from framework.ops.units import Units, units_by_weight
from framework.plugin import Host, Plugin, Step


def centralized(gradient: Tensor, units: Units) -> Tensor:
    r"""Return a gradient less its mean over the inputs of each output unit.

    .. math:: g_u \leftarrow g_u - \frac1n \sum_{i=1}^n g_{ui}

    with the positions of a kernel among the inputs.

    Args:
        gradient: of a weight of two dimensions or more.
        units: where the weight has its output units.

    Example:
        >>> import torch
        >>> centralized(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), Units())
        tensor([[-1.,  1.],
                [ 0.,  0.]])
    """
    if units.out == 0:
        dims = tuple(range(1, gradient.ndim))
        return gradient - gradient.mean(dims, keepdim=True)
    # a transposed convolution holds the inputs of each block in the first dimension
    blocks = gradient.view(units.blocks, len(gradient) // units.blocks, *gradient.shape[1:])
    dims = (1, *range(3, blocks.ndim))
    return (blocks - blocks.mean(dims, keepdim=True)).view_as(gradient)


class GradientCentralization(Plugin):
    r"""Subtract from the gradient of each output unit's weights their mean.

    .. math:: g_u \leftarrow g_u - \frac1n \sum_{i=1}^n g_{ui}

    A unit's weights then keep the mean that they began with, apart from decay and what the optimizer adds: the update
    stays in a hyperplane, which regularizes and makes training smoother. Weights of less than two dimensions and
    embeddings, whose rows are looked up and not summed, are left as they are.

    Args:
        weights: patterns of the weights.

    Raises:
        UserError: if a pattern matches no weight, or parameters are sharded.

    Example:
        >>> GradientCentralization("conv*").describe()
        "GradientCentralization(weights='conv*')"

    Interacts with: adaptive optimizers, which divide entry by entry, so that updates have no longer mean zero exactly;
    the source found it to help with SGD and Adam alike. Terms on weights are centralized with the rest.

    Source: Yong, Huang, Hua and Zhang (2020), Gradient centralization: a new optimization technique for deep neural
    networks.
    """

    weights: Patterns = "*"

    examples = ({}, {"weights": "hidden"})

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass, with the reason."""
        return {"gradcheck": "the gradient is changed, and is that of no objective"}

    def attach(self, core: Host) -> None:
        """Select the weights."""
        chosen = select_weights(core.model, self.weights, who=self.describe(), frozen=True)
        if any(is_sharded(weight) for weight in chosen.values()):
            raise UserError(
                f"{self.describe()}: needs all inputs of a unit, of which a rank has a part if parameters are sharded;"
                " use strategy='ddp'"
            )
        tables = core.model.modules()
        looked_up = {id(layer.weight) for layer in tables if hasattr(layer, "num_embeddings")}
        units = units_by_weight(core.model)
        self.chosen_ = [(weight, units[weight]) for weight in chosen.values() if id(weight) not in looked_up]

    def transform_gradients(self, step: Step) -> None:
        """Subtract the means."""
        for weight, units in self.chosen_:
            if weight.requires_grad and weight.grad is not None:
                weight.grad.copy_(centralized(weight.grad, units))
