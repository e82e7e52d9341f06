"""Freeze and thaw parameters, with the normalization layers that they belong to."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

_KEEPS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def set_trainable(model: nn.Module, frozen: Collection[Tensor], *, statistics: bool = False) -> None:
    """Let exactly those parameters of a network train that are not in ``frozen``, and set modes accordingly.

    A normalization layer that keeps running statistics is in evaluation mode if all its parameters are frozen, so that
    it normalizes by the statistics that it was trained with. One without parameters goes with the layer before it.

    Args:
        model: the network; modes of other layers do not change.
        frozen: the parameters that do not train.
        statistics: leave frozen normalization layers in training mode, whose statistics then follow the new data.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        >>> set_trainable(net, set(net[:2].parameters()))
        >>> [p.requires_grad for p in net.parameters()], net[1].training
        ([False, False, False, False, True, True], False)
    """
    ids = {id(parameter) for parameter in frozen}
    before = False  # whether the layer before is frozen
    for layer in model.modules():
        own = list(layer.parameters(recurse=False))
        for parameter in own:
            if parameter.requires_grad == (id(parameter) in ids):
                parameter.requires_grad_(id(parameter) not in ids)
        is_frozen = all(id(parameter) in ids for parameter in own) if own else before
        if isinstance(layer, _KEEPS) and layer.track_running_stats and not statistics:
            layer.training = not is_frozen
        before = is_frozen if own else before
