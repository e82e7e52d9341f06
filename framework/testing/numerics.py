"""Checks of gradients against their objective, and of gradient clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from framework.data.loaders import Window
from framework.engine.core import Core
from framework.plugin.answers import named_terms
from framework.plugin.host import Host
from framework.plugin.plugin import Plugin
from framework.plugin.step import Step
from framework.testing.case import Case, isolated
from framework.testing.result import Failed, Inapplicable

# Central differences with a step h in float64 have an error of about h^2 from curvature and 1e-16 / h from rounding.
_H, _DIFFERENCES = 1e-6, 1e-6
# Two computations of one gradient in float64, relative to its norm.
_ROUNDING = 1e-12


class _KeepingWindow(Core):
    """Core that keeps the last window of micro-batches."""

    window: Window

    def training_step(self, window: Window, batch_idx: int) -> None:
        super().training_step(window, batch_idx)
        self.window = window


def _trained(case: Case) -> tuple[_KeepingWindow, Plugin, list[Tensor]]:
    core = case.fit(
        case.make, kind=_KeepingWindow, dtype=torch.float64, batch=8, accumulate=2, trainer={"max_epochs": 1}
    )
    assert isinstance(core, _KeepingWindow)
    core.train()
    core.at.index -= 1  # the step of the window
    plugin = next(one for one in core.plugins if one.name == case.plugin.name)
    return core, plugin, [weight for weight in core.model.parameters() if weight.requires_grad]


def slope(case: Case) -> str:
    """Compare the gradient that ``weight_penalty_gradient`` adds with autograd of ``weight_penalty``."""
    if not case.overrides("weight_penalty"):
        raise Inapplicable("it has no penalty on weights")
    core, plugin, weights = _trained(case)
    value = sum(term.sum() for term in named_terms("", plugin.weight_penalty(core.at)).values())
    if not isinstance(value, Tensor) or not value.requires_grad:
        raise Failed("weight_penalty is not a differentiable function of the weights")
    expected = torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    with torch.no_grad():
        plugin.weight_penalty_gradient(core.at)
    given = [weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in weights]
    return _demand_close(_flat(given), _flat(expected), _ROUNDING, "the gradient is not that of the value")


def gradcheck(case: Case) -> str:
    """Compare a step's gradient along random directions with central differences of the objective."""
    if not case.overrides("penalty", "edit_weights", "transform_activation"):
        raise Inapplicable("it does not change a micro-batch's objective")
    core, _, weights = _trained(case)
    generator = torch.Generator().manual_seed(0)
    with isolated():
        given, expected = [], []
        gradient = _gradient(core, weights)
        for _ in range(3):
            direction = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
            values = [_objective(core, weights, direction, sign * _H) for sign in (1.0, -1.0)]
            expected.append((values[0] - values[1]) / (2 * _H))
            given.append(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
    return _demand_close(
        torch.stack([torch.as_tensor(one) for one in given]),
        torch.tensor(expected, dtype=torch.float64),
        _DIFFERENCES,
        "the gradient is not that of the objective",
    )


def _gradient(core: _KeepingWindow, weights: list[Tensor]) -> list[Tensor]:
    core.update.zero_gradients()
    core.gradient(core.window)
    return [w.grad.clone() if w.grad is not None else torch.zeros_like(w) for w in weights]


@torch.no_grad()
def _moved(weights: list[Tensor], direction: list[Tensor], by: float) -> None:
    torch._foreach_add_(weights, direction, alpha=by)


def _objective(core: _KeepingWindow, weights: list[Tensor], direction: list[Tensor], by: float) -> float:
    kept = [weight.detach().clone() for weight in weights]
    _moved(weights, direction, by)
    value = core.gradient(core.window)
    with torch.no_grad():
        torch._foreach_copy_(weights, kept)
    if value is None:
        raise Failed("the step has no objective")
    return float(value)


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _demand_close(given: Tensor, expected: Tensor, tolerance: float, what: str) -> str:
    gap = float((given - expected).norm() / expected.norm().clamp_min(1e-12))
    if not gap <= tolerance:
        raise Failed(f"{what}: relative difference {gap:.1e}, tolerance {tolerance:.0e}")
    return f"relative difference {gap:.1e}"


# ---- clipping --------------------------------------------------------------------------------------------------------


class _Lengths(Plugin):
    """Last plugin of the recipe: records norm and largest entry of the gradients of each update."""

    def attach(self, core: Host) -> None:
        self.norms_: list[float] = []
        self.largest_: list[float] = []

    def after_update(self, step: Step) -> None:
        assert step.optimizer is not None
        gradients = [p.grad for group in step.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.norms_.append(float(_flat(gradients).norm()))
        self.largest_.append(float(_flat(gradients).abs().max()))


def clipping(case: Case) -> str:
    """Clip by norm and by value to half of the smallest unclipped gradient, and check what the optimizer gets."""
    free = _Lengths()
    case.fit(case.make, free)
    found = []
    for algorithm, sizes in (("norm", "norms_"), ("value", "largest_")):
        bound = min(getattr(free, sizes)) / 2
        seen = _Lengths()
        case.fit(case.make, seen, clip=(bound, algorithm))
        largest = max(getattr(seen, sizes))
        # both norms are summed in float32
        if not bound * (1 - 1e-4) <= largest <= bound * (1 + 1e-4):
            raise Failed(f"clipped by {algorithm} to {bound:.2e}, the optimizer gets {largest:.2e}")
        found.append(f"{algorithm} {largest / bound:.6f} of the bound")
    return ", ".join(found)
