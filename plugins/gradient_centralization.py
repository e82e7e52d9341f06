"""Gradient centralization: gradients of mean zero, unit by unit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from framework.errors import UserError, some
from framework.ops.matrices import as_matrices, as_weight
from framework.ops.patterns import Patterns, select_weights
from framework.ops.shards import refuse_shards
from framework.ops.units import Units, fan_in, units_by_weight
from framework.plugin import Host, Plugin, Step

_TABLES = (nn.Embedding, nn.EmbeddingBag)


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
    rows = as_matrices(gradient, units)
    return as_weight(rows - rows.mean(2, keepdim=True), gradient, units)


class GradientCentralization(Plugin):
    r"""Subtract from the gradient of each output unit's weights their mean.

    .. math:: g_u \leftarrow g_u - \frac1n \sum_{i=1}^n g_{ui}

    A unit's weights then keep the mean that they began with, apart from decay and what the optimizer adds: the update
    stays in a hyperplane, which regularizes and makes training smoother. Left as they are: weights of less than two
    dimensions; embeddings, whose rows are looked up and not summed, also where an output layer shares them; and units
    of one input, such as of ``nn.Linear(1, 8)``, whose gradient less its mean is 0, so that they would never train.

    Args:
        weights: patterns of the weights.

    Raises:
        UserError: if a pattern matches no weight, or none that is centralized, or parameters are sharded.

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
        refuse_shards(chosen.values(), self.describe())
        # with the tensors that a parametrized table is made of
        looked_up = {
            weight for layer in core.model.modules() if isinstance(layer, _TABLES) for weight in layer.parameters()
        }
        units = units_by_weight(core.model)
        pairs = [(weight, units[weight]) for weight in chosen.values() if weight not in looked_up]
        self.chosen_ = [(weight, where) for weight, where in pairs if fan_in(weight, where) > 1]
        if not self.chosen_:
            raise UserError(
                f"{self.describe()}: nothing to centralize in {some(chosen)}: gradients of embeddings and of units of"
                " one input stay as they are; choose other weights by weights="
            )

    def transform_gradients(self, step: Step) -> None:
        """Subtract the means."""
        for weight, units in self.chosen_:
            if weight.requires_grad and weight.grad is not None:
                weight.grad.copy_(centralized(weight.grad, units))
