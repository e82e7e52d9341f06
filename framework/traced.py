"""Keyed draws, and numbers that move, within a network that ``torch.compile`` traces."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from framework.keyed import Kind

if TYPE_CHECKING:
    from framework.step import Step

_STEPS: weakref.WeakValueDictionary[int, Step] = weakref.WeakValueDictionary()
_TOKENS = itertools.count()


def register(step: Step) -> int:
    """Return a number by which a compiled graph finds the step at hand again."""
    token = next(_TOKENS)
    _STEPS[token] = step
    return token


# A graph of its own kind of node: the number of the step, by which draws are keyed, is read where the node runs. Traced
# into the graph, it would make one for each step; left to Python, it would break the graph in two. That backward may
# work a node out once more is no harm, since the same place gives the same draws.
@torch.library.custom_op("jtilde::draw", mutates_args=())
def draw(like: Tensor, token: int, kind: str, name: str, who: str) -> Tensor:
    """Return draws shaped like ``like``, see :meth:`framework.step.Step.normal`.

    Args:
        like: tensor ``(samples, …)``.
        token: what :func:`register` gave.
        kind: ``"normal"`` or ``"uniform"``.
        name: the plugin's name.
        who: tells draws of one plugin apart.
    """
    # a count of changes that starts anew: a graph may work in the memory of the draws, and plugins look at the count to
    # find layers that overwrite what they saw
    return _STEPS[token].rows(cast(Kind, kind), name, like, who).data


@draw.register_fake
def _(like: Tensor, token: int, kind: str, name: str, who: str) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


@torch.library.custom_op("jtilde::number", mutates_args=())
def number(token: int, name: str, setting: str) -> Tensor:
    """Return a plugin's setting as it stands: a number that moves would make a graph for each of its values.

    Args:
        token: what :func:`register` gave.
        name: the plugin's name.
        setting: the setting's name.
    """
    return torch.tensor(float(getattr(_STEPS[token].plugins[name], setting)), dtype=torch.float64)


@number.register_fake
def _(token: int, name: str, setting: str) -> Tensor:
    return torch.empty((), dtype=torch.float64)
