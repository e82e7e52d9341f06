"""Where a layer's weight has its output units and its inputs."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList


class Units(NamedTuple):
    """Dimensions of a weight that count output units and inputs, and the number of blocks they come in.

    The first dimension holds all units of its kind, and the second those of one block where there are several.

    Args:
        out: dimension of output units.
        into: dimension of inputs.
        blocks: ``groups`` of a convolution.
    """

    out: int = 0
    into: int = 1
    blocks: int = 1


def units_of(layer: nn.Module) -> Units:
    """Return where the weight of a layer has its output units.

    An embedding is a linear map of one-hot tokens, stored transposed: its output units are the entries of a vector.

    Example:
        >>> units_of(nn.ConvTranspose2d(4, 6, 3, groups=2))
        Units(out=1, into=0, blocks=2)
    """
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return Units(1, 0, layer.groups)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return Units(0, 1, layer.groups)
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return Units(1, 0)
    return Units()


def fan_in(weight: Tensor, units: Units) -> int:
    """Return how many entries of a weight feed each output unit, the positions of a kernel included.

    Example:
        >>> import torch
        >>> fan_in(torch.zeros(6, 2, 3, 3), Units(blocks=2)), fan_in(torch.zeros(4, 3, 3, 3), Units(1, 0, blocks=2))
        (18, 18)
    """
    # the second dimension counts the units of one block only
    return weight.numel() // (weight.shape[units.out] * (units.blocks if units.out else 1))


def units_by_weight(model: nn.Module) -> dict[Tensor, Units]:
    """Return where each parameter has its output units; for an embedding tied to another layer, as that layer has them.

    The tensors of a parametrized weight have them where its layer has them.
    """
    found: dict[Tensor, Units] = {}
    for layer in model.modules():
        units, table = units_of(layer), isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
        lists = [
            part for part in getattr(layer, "parametrizations", {}).values() if isinstance(part, ParametrizationList)
        ]
        for holder in (layer, *lists):
            for parameter in holder.parameters(recurse=False):
                if table:
                    found.setdefault(parameter, units)
                elif not isinstance(layer, ParametrizationList):
                    found[parameter] = units
    return found
