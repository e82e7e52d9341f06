"""Custom operators for compiled networks: keyed draws, and settings that change during the run."""

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
    """Register a step and return the number by which compiled graphs find it."""
    token = next(_TOKENS)
    _STEPS[token] = step
    return token


# An operator reads the step's index, which keys the draws, when it runs. As a constant in the graph the index would
# cause a recompilation at each step, and left to Python it would break the graph. Backward may recompute the node,
# since the same key gives the same draws.
# It takes a shape rather than a tensor of that shape, which would have to be computed first: so the noise is fused with
# the computation of what it is added to.
def _drawn(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, token: int, kind: str, name: str, who: str
) -> Tensor:
    """Return draws of shape ``(samples, …)``; see :meth:`framework.plugin.Step.normal`.

    Args:
        shape: shape of the draws.
        dtype: type of the draws.
        device: device of the draws.
        token: the number from :func:`register`.
        kind: ``"normal"`` or ``"uniform"``.
        name: the plugin's name.
        who: distinguishes several draws of one plugin.
    """
    like = torch.empty(list(shape), dtype=dtype, device=device)
    # .data has a version counter of its own: a graph may reuse the memory of the draws, and plugins compare versions to
    # find layers that overwrite an output in place
    return _STEPS[token].rows(cast(Kind, kind), name, like, who).data


def _like_drawn(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, token: int, kind: str, name: str, who: str
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def _number(token: int, name: str, setting: str) -> Tensor:
    """Return the current value of a plugin's setting; as a constant in the graph each value would recompile it.

    Args:
        token: the number from :func:`register`.
        name: the plugin's name.
        setting: the setting's name.
    """
    return torch.tensor(float(getattr(_STEPS[token].plugins[name], setting)), dtype=torch.float64)


def _like_number(token: int, name: str, setting: str) -> Tensor:
    return torch.empty((), dtype=torch.float64)


# torch.library.custom_op would add 0.15 ms per call for checks that these operators do not need
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
