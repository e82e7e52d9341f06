"""Residual branches of a network: layers whose output is added to what they were computed from."""

from __future__ import annotations

import copy
import itertools
import operator
import re
from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer

from framework.ops.draws import keyed_globals

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_JOINS = (*_ADDS, operator.sub, torch.sub, torch.addcmul, torch.lerp, torch.cat, torch.concat, torch.stack)
_USUAL = re.compile(r"(.*\.)?(attn|self_attn|mlp|ffn|ff|feed_forward|branch|residual)$")
_TRANSFORMERS = {nn.TransformerEncoderLayer: 2, nn.TransformerDecoderLayer: 3}


class _Around(Tracer):
    """Traces a network into its calls, those of chosen layers as one call each."""

    def __init__(self, whole: Collection[str]) -> None:
        super().__init__()
        self._whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._whole or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module, whole: Collection[str] = ()) -> Graph | None:
    """Return the graph of a network's calls, None where its forward cannot be traced; nothing else changes."""
    try:
        shared = {id(one): one for one in itertools.chain(model.parameters(), model.buffers())}
        with keyed_globals(0):
            return _Around(whole).trace(copy.deepcopy(model, shared))  # the user's forward may keep what it sees
    except Exception:  # whatever the user's forward raises on what is no tensor
        return None


def branches(model: nn.Module) -> list[str]:
    """Return patterns of layers that are likely residual branches, best by tracing the network, else by usual names.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        ...     def forward(self, x):
        ...         return x + self.body(x)
        >>> branches(nn.Sequential(Block(), Block(), nn.Linear(2, 1)))
        ['*.body']
    """
    graph = _traced(model)
    found = [] if graph is None else [name for node in graph.nodes if node.target in _ADDS for name in _added(node)]
    for name, layer in model.named_modules():
        count = next((count for kind, count in _TRANSFORMERS.items() if isinstance(layer, kind)), 0)
        found += [f"{name}.dropout{place + 1}".lstrip(".") for place in range(count)]
    found = found or [name for name, _ in model.named_modules() if _USUAL.match(name)]
    return list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in found))


def erasing(model: nn.Module, names: Collection[str]) -> list[str]:
    """Return those of some layers whose output nothing goes around, so that all is lost where it is set to 0.

    Layers are left out of which the trace shows no call, such as all of a network that cannot be traced.
    """
    graph = _traced(model, names)
    calls = [] if graph is None else [one for one in graph.nodes if one.op == "call_module" and one.target in names]
    passed = {str(call.target) for call in calls if _goes_around(call)}
    return [name for name in names if name in {call.target for call in calls} - passed]


def _added(add: Node) -> Iterator[str]:
    """Yield the layer whose output an addition adds to what the layer was computed from."""
    pair = [one for one in add.args if isinstance(one, Node)]
    for branch, trunk in (pair, pair[::-1]) if len(pair) == 2 else ():
        if trunk not in _reached(branch, "all_input_nodes"):
            continue
        at: Node | None = branch
        while at is not None and at is not trunk:
            if inner := [name for name in _layers_of(at) if name not in _layers_of(add)]:
                yield inner[0]
                break
            before = [one for one in at.all_input_nodes if one.op != "get_attr"]  # a factor on the branch
            at = before[0] if len(before) == 1 else None


def _goes_around(call: Node) -> bool:
    after = _reached(call, "users") | {call}
    joins = [one for one in after if one.target in _JOINS]
    return any(one not in after and one.op != "get_attr" for join in joins for one in join.all_input_nodes)


def _layers_of(node: Node) -> list[str]:
    """Return the layers within which a call happens, from the outermost to the innermost."""
    return [str(name) for name in node.meta.get("nn_module_stack", {})]


def _reached(node: Node, way: str) -> set[Node]:
    reached: set[Node] = set()
    waiting = [*getattr(node, way)]
    while waiting:
        one = waiting.pop()
        if one not in reached:
            reached.add(one)
            waiting += getattr(one, way)
    return reached
