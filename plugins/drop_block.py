"""DropBlock: squares of feature maps that are dropped together."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework.errors import UserError
from framework.ops.draws import Rate
from framework.ops.patterns import Patterns
from framework.plugin import Host, Plugin, Step
from framework.ranges import Range
from framework.settings import PositiveInt

_MAPS = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d)


def places(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Return the height and width of a block, at most those of the map, and how many rows and columns it may start in.

    Example:
        >>> places(8, 4, 6)
        (6, 4, 3, 1)
    """
    high, wide = min(size, height), min(size, width)
    return high, wide, height - high + 1, width - wide + 1


def gamma_share(height: int, width: int, size: int) -> float:
    r"""Return by what the rate is multiplied to be the probability :math:`\gamma` that a block starts at a place.

    .. math:: \frac\gamma p = \frac{HW}{s^2\,(H - s + 1)(W - s + 1)}

    Example:
        >>> gamma_share(4, 4, 2)
        0.4444444444444444
    """
    high, wide, rows, columns = places(height, width, size)
    return height * width / (high * wide * rows * columns)


def blocks(starts: Tensor, high: int, wide: int) -> Tensor:
    r"""Return the mask of the entries that lie in a block.

    .. math:: B_{ij} = \max_{0 \le a < h,\; 0 \le b < w} S_{i-a,\,j-b}

    Args:
        starts: :math:`S`, true where a block has its first row and column: ``(samples, channels, rows, columns)``.
        high: height :math:`h` of a block.
        wide: width :math:`w` of a block.

    Example:
        >>> blocks(torch.tensor([[[[False, True], [False, False]]]]), 2, 2).int().tolist()
        [[[[0, 1, 1], [0, 1, 1], [0, 0, 0]]]]
    """
    around = F.pad(starts.float(), (wide - 1, wide - 1, high - 1, high - 1))
    return F.max_pool2d(around, (high, wide), stride=1) > 0


def drop_blocks(x: Tensor, hidden: Tensor) -> Tensor:
    r"""Set entries to zero and scale the others of each sample, so that its sum is as large as one expects.

    .. math:: \tilde x_n = x_n \odot (1 - B_n)\,\frac{CHW}{\sum (1 - B_n)}

    A sample of which nothing is left is zero.

    Args:
        x: feature maps ``(samples, channels, height, width)``.
        hidden: :math:`B`, true where an entry is dropped.

    Example:
        >>> drop_blocks(torch.ones(1, 1, 2, 2), torch.tensor([[[[True, True], [False, False]]]])).tolist()
        [[[[0.0, 0.0], [2.0, 2.0]]]]
    """
    left = hidden.logical_not().sum((1, 2, 3), dtype=torch.float32, keepdim=True)
    scale = math.prod(x.shape[1:]) / left.clamp_min(1.0)
    return x.masked_fill(hidden, 0.0) * scale.to(x.dtype)


class DropBlock(Plugin):
    r"""Set random squares of feature maps to zero during training, each channel's at places of its own.

    .. math::
        \tilde x_n = x_n \odot (1 - B_n)\,\frac{CHW}{\sum (1 - B_n)}, \qquad
        P(\text{a block starts at a place}) = \gamma = \frac{p\,HW}{s^2\,(H - s + 1)(W - s + 1)}

    Blocks of side :math:`s` lie within the map and may overlap, so that slightly less than :math:`p` is dropped. On a
    map that is smaller than a block, blocks are as high or wide as the map; at :math:`s = 1` this is dropout, and where
    the map is a single block whole channels are dropped. The source counts what is left over the whole batch; here each
    sample is scaled by itself, so that micro-batches and ranks give the step of one batch. Evaluation uses :math:`x`.

    Args:
        layers: patterns over names or class names of layers that return feature maps ``(samples, channels, height,
            width)``, such as ``"relu*"`` or ``"layer3, layer4"``: the deeper half of a network in the source.
        size: the side :math:`s` in entries of the map; 7 on maps of 14 to 28 entries in the source, about a half or a
            third of the map elsewhere.
        rate: :math:`p` in [0, 1); 0.1 in the source, which lets it grow from 0 during the run: see
            :class:`~plugins.strength_schedule.StrengthSchedule`. Zero drops nothing.

    Raises:
        UserError: if a pattern matches no layer, or a layer's output is no feature map.

    Example:
        >>> DropBlock("layer4", size=3).describe()
        "DropBlock(layers='layer4', size=3)"

    Interacts with:
        BatchNorm after the layer sees the squares in training and none in evaluation: place blocks after the norm.
        ``Cutout`` hides squares of the image from all channels.

    Source: Ghiasi, Lin and Le (2018), DropBlock: A regularization method for convolutional networks.
    """

    layers: Patterns
    size: PositiveInt = 7
    rate: Annotated[Rate, Range(0, 0.4)] = 0.1

    examples = (
        {"layers": "relu", "size": 3, "rate": 0.3},
        {"layers": "AvgPool2d", "size": 7, "rate": 0.4},
    )
    absent = ({"rate": 0.0},)

    def attach(self, core: Host) -> None:
        """Select the layers."""
        core.observe(self, self.layers)
        kinds = {type(layer).__name__: None for layer in core.model.modules() if isinstance(layer, _MAPS)}
        self.maps_ = f"such as {', '.join(map(repr, kinds))}" if kinds else "of which the network has no usual one"

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        """Return the layer's output with squares set to zero."""
        if x.ndim != 4:
            raise UserError(
                f"{self.describe()}: {layer} returns {tuple(x.shape)}, no feature maps (samples, channels, height,"
                f" width); choose layers that do, {self.maps_}"
            )
        rate = step.number(self, "rate")
        if not isinstance(rate, Tensor) and not rate:
            return x
        height, width = x.shape[2:]
        high, wide, rows, columns = places(height, width, self.size)
        like = torch.empty(*x.shape[:2], rows, columns, device=x.device, dtype=torch.float32)
        starts = step.uniform(self, like, layer) < rate * gamma_share(height, width, self.size)
        return drop_blocks(x, blocks(starts, high, wide))
