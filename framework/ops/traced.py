"""Keyed draws, and numbers that move, within a network that ``torch.compile`` traces."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from framework.ops.draws import Source
from framework.ops.keyed import Kind

_STEPS: weakref.WeakValueDictionary[int, Source] = weakref.WeakValueDictionary()
_TOKENS = itertools.count()


def register(step: Source) -> int:
    """Return a number by which a compiled graph finds the step at hand again."""
    token = next(_TOKENS)
    _STEPS[token] = step
    return token


# A graph of its own kind of node: the number of the step, by which draws are keyed, is read where the node runs. Traced
# into the graph, it would make one for each step; left to Python, it would break the graph in two. That backward may
# work a node out once more is no harm, since the same place gives the same draws.
# It is told a shape, not a tensor of that shape, which would have to be worked out first: so noise joins the pass that
# works out what it is added to.
def _drawn(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, token: int, kind: str, name: str, who: str
) -> Tensor:
    """Return draws of a shape ``(samples, …)``, see :meth:`framework.plugin.step.Step.normal`.

    Args:
        shape: of the draws.
        dtype: of the draws.
        device: where they are to be.
        token: what :func:`register` gave.
        kind: ``"normal"`` or ``"uniform"``.
        name: the plugin's name.
        who: tells draws of one plugin apart.
    """
    like = torch.empty(list(shape), dtype=dtype, device=device)
    # a count of changes that starts anew: a graph may work in the memory of the draws, and plugins look at the count to
    # find layers that overwrite what they saw
    return _STEPS[token].rows(cast(Kind, kind), name, like, who).data


def _like_drawn(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, token: int, kind: str, name: str, who: str
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def _number(token: int, name: str, setting: str) -> Tensor:
    """Return a plugin's setting as it stands: a number that moves would make a graph for each of its values.

    Args:
        token: what :func:`register` gave.
        name: the plugin's name.
        setting: the setting's name.
    """
    return torch.tensor(float(getattr(_STEPS[token].plugins[name], setting)), dtype=torch.float64)


def _like_number(token: int, name: str, setting: str) -> Tensor:
    return torch.empty((), dtype=torch.float64)


# not torch.library.custom_op, whose wrappers take 0.15 ms a call to look for what these do not do
_library: Any = torch.library.Library("jtilde", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "draw(SymInt[] shape, ScalarType dtype, Device device, int token, str kind, str name, str who) -> Tensor"
)
_library.impl("draw", _drawn, "CompositeExplicitAutograd")
torch.library.register_fake("jtilde::draw", _like_drawn, lib=_library)
_library.define("number(int token, str name, str setting) -> Tensor")
_library.impl("number", _number, "CompositeExplicitAutograd")
torch.library.register_fake("jtilde::number", _like_number, lib=_library)

draw = torch.ops.jtilde.draw
number = torch.ops.jtilde.number
