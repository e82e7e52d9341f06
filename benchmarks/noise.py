"""Weight noise over a save, an addition and a restoration; numbers per second against torch's generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.versus import Row, versus
from framework import Core
from framework.ops.keyed import Stream
from plugins.weight_noise import WeightNoise


def edit(model: nn.Module) -> tuple[Callable[[], None], list[Tensor]]:
    """Return a function that adds noise to a network's weights and restores them, and the weights."""
    plugin = WeightNoise(0.01)
    core = Core(model, plugins=[plugin])
    core.attach_plugins()
    step = core.at

    def run() -> None:
        step.index += 1
        with torch.no_grad():
            plugin.edit_weights(step)
        step.edits.undo()

    return run, [weight.detach() for weight in plugin.weights_]


def addition(weights: list[Tensor]) -> Callable[[], None]:
    """Return the minimal work of adding existing noise and removing it again."""
    copies, noise = [torch.empty_like(w) for w in weights], [torch.randn_like(w) for w in weights]

    def run() -> None:
        torch._foreach_copy_(copies, weights)
        torch._foreach_add_(weights, noise, alpha=0.01)
        torch._foreach_copy_(weights, copies)

    return run


def rows(rounds: int = 40) -> list[Row]:
    """Return the rows; torch's number of threads is the caller's."""
    nets: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "weight noise, 1M weights in one tensor": (lambda: nn.Linear(1024, 1024), rounds),
        "weight noise, 25M weights in one tensor": (lambda: nn.Linear(5000, 5000), max(rounds // 4, 3)),
        "weight noise, 200 tensors of 64x64": (
            lambda: nn.Sequential(*[nn.Linear(64, 64) for _ in range(200)]),
            rounds,
        ),
    }
    table = []
    for name, (make, turns) in nets.items():
        ours, weights = edit(nn.Sequential(make()))
        table.append(versus(name, ours, addition(weights), goal="<= 4", rounds=turns))
    stream, size = Stream(0, "noise"), 1 << 17
    for kind, draw, torch_draw in (("normal", stream.normals, torch.randn), ("uniform", stream.uniforms, torch.rand)):
        table.append(
            versus(
                f"{kind} numbers, 131,072 / torch's generator",
                lambda draw=draw: draw(1, size=size),
                lambda draw=torch_draw: draw(size, generator=stream.torch(1)),
                goal="",
                rounds=rounds,
            )
        )
    return table
