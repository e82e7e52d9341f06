"""Draws and numbers that a compiled network reads where it runs."""

import torch
from torch import Tensor

from framework.plugin import Plugin
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step


class Draws(Plugin):
    strength: float = 0.5


def step_of(plugin: Plugin) -> Step:
    step = Step(3, WeightEdits())
    step.plugins = {plugin.name: plugin}
    step.count = 4
    return step


def test_a_compiled_function_draws_what_the_step_draws_and_is_compiled_once() -> None:
    plugin = Draws()
    step = step_of(plugin)
    x = torch.ones(4, 3, requires_grad=True)

    def disturb(x: Tensor) -> Tensor:
        return x * step.number(plugin, "strength") + step.normal(plugin, x) + step.uniform(plugin, x, "other")

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(disturb, backend="aot_eager", fullgraph=True)
    seen = []
    for index, strength in enumerate((0.5, 0.25, 2.0)):
        step.index, plugin.strength = index, strength
        out = compiled(x)
        torch.testing.assert_close(out, disturb(x))
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert torch.equal(gradient, torch.full_like(x, strength))
        seen.append(out)
    assert not torch.equal(seen[0], seen[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_two_steps_at_hand_are_distinguished() -> None:
    plugin = Draws()
    one, other = step_of(plugin), step_of(plugin)
    other.index = 1
    x = torch.ones(4, 3)
    compiled = torch.compile(lambda step: step.normal(plugin, x), backend="eager", fullgraph=True)
    assert torch.equal(compiled(one), one.normal(plugin, x))
    assert torch.equal(compiled(other), other.normal(plugin, x))


def test_drawn_numbers_look_untouched() -> None:
    plugin = Draws()
    step = step_of(plugin)
    x = torch.ones(4, 300)
    assert torch.compile(lambda x: step.normal(plugin, x), backend="eager", fullgraph=True)(x)._version == 0
