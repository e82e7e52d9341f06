"""Terms on 200 weights of 64x64 over one foreach addition, and an average of them over one foreach interpolation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.versus import Row, versus
from framework import Core, Plugin
from plugins.norm_penalty import NormPenalty
from plugins.weight_average import WeightAverage

TERMS: dict[str, tuple[Callable[[], NormPenalty], str]] = {
    "L2": (lambda: NormPenalty(1e-4), "<= 1.5"),
    "L1": (lambda: NormPenalty(1e-4, p=1), "<= 3"),
    "elastic net": (lambda: NormPenalty(1e-4, l1_ratio=0.5), "<= 4"),
    "L2-SP": (lambda: NormPenalty(1e-4, around="start"), "<= 2.5"),
}


def attached(plugin: Plugin) -> tuple[Plugin, Core, list[nn.Parameter]]:
    """Return a plugin attached to 200 weights with gradients."""
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(200)])
    core = Core(model, plugins=[plugin])
    core.attach_plugins()
    weights = list(model.parameters())
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    return plugin, core, weights


def rows(rounds: int = 60) -> list[Row]:
    """Return the rows; torch's number of threads is the caller's."""
    table = []
    for name, (make, goal) in TERMS.items():
        plugin, core, weights = attached(make())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        values = [weight.detach() for weight in weights]
        table.append(
            versus(
                f"{name}, gradient / _foreach_add_",
                lambda plugin=plugin, core=core: plugin.weight_penalty_gradient(core.at),
                lambda gradients=gradients, values=values: torch._foreach_add_(gradients, values, alpha=1e-4),
                goal=goal,
                rounds=rounds,
                times=5,
            )
        )
    plugin, core, weights = attached(WeightAverage(decay=0.99))
    averages, values = [w.detach().clone() for w in weights], [w.detach() for w in weights]
    with torch.no_grad():
        table.append(
            versus(
                "EMA / _foreach_lerp_",
                lambda: plugin.after_update(core.at),
                lambda: torch._foreach_lerp_(averages, values, 0.01),
                goal="<= 1.3",
                rounds=rounds,
                times=5,
            )
        )
    return table
