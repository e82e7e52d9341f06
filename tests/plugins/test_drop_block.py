"""Squares of feature maps vanish as a loop over places says, at the rate asked for, however a step is cut."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework import Data, Recipe, UserError, fit
from framework.ops.keyed import Stream
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from plugins.drop_block import DropBlock, blocks, drop_blocks, gamma_share, places
from tests.by_hand import loop

X = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 3


class After(nn.Module):
    """Applies a function, which a copy of the network shares."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(x)


def network(after: Any = None) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.Identity() if after is None else After(after), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(72, 3))


def trained(*plugins: Any, model: nn.Module | None = None, **trainer: Any) -> Any:
    model = network() if model is None else model
    compiled = trainer.pop("compile", False)
    data = Data((X, Y), (X, Y), batch_size=trainer.pop("batch_size", 16))
    options = {"max_epochs": 2, "enable_progress_bar": False, **trainer}
    recipe = Recipe(model, data, F.cross_entropy, plugins=list(plugins), trainer=options, compile=compiled)
    return fit(recipe, seed=3, logs=None)


def weights_of(run: Any) -> Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def dropped(plugin: DropBlock, x: Tensor, index: int = 0, start: int = 0, of: int = 0) -> Tensor:
    step = Step(3, WeightEdits())
    step.index, step.count, step.start, step.samples = index, len(x), start, of or len(x)
    return plugin.transform_activation(x, "conv", step)


def by_loops(x: Tensor, u: Tensor, size: int, rate: float) -> Tensor:
    """Return what the paper's algorithm gives, place by place, each sample scaled by itself."""
    count, channels, height, width = x.shape
    high, wide = min(size, height), min(size, width)
    valid = (height - high + 1) * (width - wide + 1)
    gamma = rate / (high * wide) * (height * width) / valid
    mask = torch.ones_like(x)
    for n, c, i, j in itertools.product(range(count), range(channels), *map(range, u.shape[2:])):
        if u[n, c, i, j] < gamma:
            mask[n, c, i : i + high, j : j + wide] = 0
    return torch.stack([one * m * m.numel() / max(m.sum(), 1) for one, m in zip(x, mask, strict=True)])


def test_by_hand() -> None:
    starts = torch.zeros(1, 1, 2, 3, dtype=torch.bool)
    starts[0, 0, 0, 2] = True
    hidden = blocks(starts, 3, 2)
    expected = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()
    assert torch.equal(hidden[0, 0], expected)
    out = drop_blocks(torch.ones(1, 1, 4, 4), hidden)
    torch.testing.assert_close(out[0, 0], (~expected) * 1.6)  # 16 / 10
    assert places(8, 4, 6) == (6, 4, 3, 1)
    assert gamma_share(8, 8, 3) == pytest.approx(64 / (9 * 36))
    assert gamma_share(5, 7, 1) == gamma_share(4, 4, 9) == 1
    assert not drop_blocks(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)).any()


@pytest.mark.parametrize(("size", "shape"), [(1, (5, 4)), (2, (5, 4)), (3, (6, 6)), (7, (8, 4)), (9, (3, 3))])
def test_it_is_the_papers_algorithm(size: int, shape: tuple[int, int]) -> None:
    x = torch.randn(7, 3, *shape, generator=torch.Generator().manual_seed(1))
    rows, columns = places(*shape, size)[2:]
    numbers = 3 * rows * columns
    u = Stream(3, "drop_block/conv").of_step(0, room=7 * numbers, start=0, size=7 * numbers, kind="uniform")
    expected = by_loops(x, u.view(7, 3, rows, columns), size, 0.4)
    torch.testing.assert_close(dropped(DropBlock("*", size, 0.4), x), expected)
    assert bool((expected == 0).any())


@pytest.mark.parametrize("size", [1, 3, 20])
def test_the_rate_is_about_that_asked_for(size: int) -> None:
    out = dropped(DropBlock("*", size, 0.1), torch.ones(600, 4, 12, 12))
    share = (out == 0).float().mean().item()
    assert 0.09 < share < 0.105  # overlaps drop less
    assert out.mean().item() == pytest.approx(1.0, abs=1e-3)


def test_micro_batches_draw_as_one_batch_and_steps_apart() -> None:
    plugin, x = DropBlock("*", 2, 0.4), torch.ones(40, 2, 5, 5)
    out = dropped(plugin, x)
    assert torch.equal(out[25:], dropped(plugin, x[25:], start=25, of=40))
    assert not torch.equal(out, dropped(plugin, x, index=1))


def test_the_gradient_is_that_of_the_formula() -> None:
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dropped(DropBlock("*", 2, 0.4), x), x)


def test_a_fit_equals_a_loop_by_hand() -> None:
    index = 0

    def after(h: Tensor) -> Tensor:
        stream = Stream(3, "drop_block/0")
        u = stream.of_step(index, room=16 * 32, start=0, size=16 * 32, kind="uniform").view(16, 2, 4, 4)
        return by_loops(h, u, 3, 0.3)

    model = network(after)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)

    def count() -> None:
        nonlocal index
        index += 1

    expected = loop(model, F.cross_entropy, (X, Y), optimizer, count)
    run = trained(DropBlock("Conv2d", 3, 0.3))
    torch.testing.assert_close(weights_of(run), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, weights_of(trained()), atol=1e-4)
    assert run.metrics["val/loss"] == pytest.approx(F.cross_entropy(run.core.model(X), Y).item(), abs=1e-6)


def test_micro_batches_equal_one_batch_and_rate_zero_is_absence() -> None:
    four = trained(DropBlock("0", 3, 0.3), accumulate_grad_batches=4)
    torch.testing.assert_close(weights_of(four), weights_of(trained(DropBlock("0", 3, 0.3), batch_size=64)))
    assert torch.equal(weights_of(trained(DropBlock("0", 3, 0.0))), weights_of(trained()))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch hides it, but not from an error filter
def test_a_compiled_network_meets_the_same_squares() -> None:
    whole = {"backend": "eager", "fullgraph": True}
    compiled = trained(DropBlock("0", 3, 0.3), compile=whole, limit_val_batches=0)
    eager = trained(DropBlock("0", 3, 0.3), limit_val_batches=0)
    torch.testing.assert_close(weights_of(compiled), weights_of(eager), rtol=1e-5, atol=1e-6)


def test_outputs_that_are_no_maps_are_refused() -> None:
    message = r"^DropBlock\(layers='Linear'\): 3 returns \(16, 3\), no feature maps .* that do, such as 'Conv2d'$"
    with pytest.raises(UserError, match=message):
        trained(DropBlock("Linear"))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(UserError, match="of which the network has no usual one"):
        trained(DropBlock("Linear"), model=flat)


def test_wrong_settings_and_patterns_are_refused() -> None:
    for settings in ({"size": 0}, {"size": 2.5}, {"rate": 1.0}, {"rate": -0.1}):
        with pytest.raises(UserError, match=r"^DropBlock\("):
            DropBlock("*", **settings)
    with pytest.raises(UserError, match=r"pattern 'Conv2D' matches no layer of Sequential; did you mean 'Conv2d'\?"):
        trained(DropBlock("Conv2D"))
