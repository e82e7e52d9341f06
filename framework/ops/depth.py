"""The blocks of a network by depth, from the input to the head."""

from __future__ import annotations

from torch import nn

from framework.ops.patterns import is_weight

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_of(model: nn.Module) -> list[list[str]]:
    """Return the names of a network's parameters in blocks by depth: the stem first, the head last.

    Blocks are the network's children in the order in which it registers them, which is that of the forward pass in
    nearly all networks. A child that holds a stack of blocks (a ``Sequential`` or ``ModuleList`` whose entries have
    layers of their own) is taken apart; a layer without weights, such as a normalization, belongs to the block before
    it, and a parameter of the network itself, such as a position embedding, to the first.

    Args:
        model: the network.

    Example:
        >>> blocks_of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1)))
        [['0.weight', '0.bias', '1.weight', '1.bias'], ['3.weight', '3.bias']]
    """
    blocks: list[list[str]] = []
    seen: set[nn.Parameter] = set()

    def add(module: nn.Module, prefix: str, *, recurse: bool) -> None:
        own, weighs = [], False
        for path, layer in module.named_modules(prefix=prefix) if recurse else [(prefix, module)]:
            for short, parameter in layer.named_parameters(recurse=False):
                if parameter not in seen:
                    seen.add(parameter)
                    own.append(f"{path}.{short}" if path else short)
                    weighs |= is_weight(layer, short, parameter)
        if own and (weighs or not blocks):
            blocks.append(own)
        elif own:
            blocks[-1].extend(own)

    def walk(module: nn.Module, prefix: str) -> None:
        if any(True for _ in module.parameters(recurse=False)):
            add(module, prefix, recurse=False)
        for name, child in module.named_children():
            path = f"{prefix}.{name}" if prefix else name
            if _holds_a_stack(child):
                walk(child, path)
            else:
                add(child, path, recurse=True)

    walk(model, "")
    return blocks


def _holds_a_stack(module: nn.Module) -> bool:
    return any(isinstance(one, _CONTAINERS) and _is_stack(one) for one in module.modules())


def _is_stack(container: nn.Module) -> bool:
    """Return whether a container has two entries or more with layers of their own."""
    entries = [one for one in container.children() if any(True for _ in one.parameters())]
    return len(entries) > 1 and sum(any(True for _ in one.children()) for one in entries) > 1
