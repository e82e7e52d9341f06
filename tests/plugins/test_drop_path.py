"""Branches are left out for whole samples, at rates that grow with depth, however a step is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework import Data, Recipe, UserError, fit
from framework.ops.keyed import Stream
from framework.plugin.edits import WeightEdits
from framework.plugin.finding import LintWarning
from framework.plugin.step import Step
from plugins.drop_path import DropPath, drop_samples, shares
from plugins.strength_schedule import StrengthSchedule
from tests.by_hand import loop

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 3


class Block(nn.Module):
    """A residual block; ``after`` is applied to the branch."""

    def __init__(self, after: Any = None) -> None:
        super().__init__()
        self.branch, self.after = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), after

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        return x + (h if self.after is None else self.after(h))


def network(*after: Any) -> nn.Sequential:
    torch.manual_seed(1)
    blocks = [Block(one) for one in after or (None, None, None)]
    return nn.Sequential(nn.Linear(6, 8), *blocks, nn.Linear(8, 3))


def trained(*plugins: Any, model: nn.Module | None = None, x: Tensor = X, **trainer: Any) -> Any:
    model = network() if model is None else model
    compiled = trainer.pop("compile", False)
    data = Data((x, Y), (x, Y), batch_size=trainer.pop("batch_size", 16))
    options = {"max_epochs": 2, "enable_progress_bar": False, **trainer}
    recipe = Recipe(model, data, F.cross_entropy, plugins=list(plugins), trainer=options, compile=compiled)
    return fit(recipe, seed=3, logs=None)


def weights_of(run: Any) -> Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def dropped(plugin: DropPath, x: Tensor, layer: str = "branch", index: int = 0, start: int = 0, of: int = 0) -> Tensor:
    step = Step(3, WeightEdits())
    step.index, step.count, step.start, step.samples = index, len(x), start, of or len(x)
    plugin.shares_ = {layer: 1.0}
    return plugin.transform_activation(x, layer, step)


def test_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]])
    out = drop_samples(x, 0.2, torch.tensor([0.1, 0.2, 0.9]))
    torch.testing.assert_close(out, torch.tensor([[[0.0, 0.0]], [[3.75, 5.0]], [[6.25, 7.5]]]))
    assert shares(5, by_depth=True) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert shares(2, by_depth=False) == [1.0, 1.0]
    assert shares(1, by_depth=True) == [1.0]


def test_whole_samples_are_left_out_as_often_as_asked_and_the_mean_stays() -> None:
    out = dropped(DropPath("*", 0.3), torch.ones(20_000, 2, 3)).flatten(1)
    gone = (out == 0).all(1)
    torch.testing.assert_close(out[~gone], torch.full_like(out[~gone], 1 / 0.7))
    assert abs(gone.float().mean() - 0.3) < 4.5 * (0.21 / 20_000) ** 0.5


def test_steps_and_layers_draw_apart_and_micro_batches_together() -> None:
    plugin, x = DropPath("*", 0.5), torch.ones(40, 2)
    out = dropped(plugin, x)
    assert torch.equal(out, dropped(plugin, x))
    assert not torch.equal(out, dropped(plugin, x, index=1))
    assert not torch.equal(out, dropped(plugin, x, "other"))
    assert torch.equal(out[25:], dropped(plugin, x[25:], start=25, of=40))


def test_the_gradient_is_that_of_the_formula() -> None:
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dropped(DropPath("*", 0.4), x), x)


@pytest.mark.parametrize("by_depth", [True, False])
def test_a_fit_equals_a_loop_by_hand(by_depth: bool) -> None:
    index = 0

    def after(place: int) -> Any:
        def left_out(h: Tensor) -> Tensor:
            rate = 0.6 * (place / 3 if by_depth else 1)
            u = Stream(3, f"drop_path/{place}.branch").of_step(index, room=16, start=0, size=16, kind="uniform")
            return h * (u >= rate).unsqueeze(1) / (1 - rate)

        return left_out

    model = network(after(1), after(2), after(3))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)

    def count() -> None:
        nonlocal index
        index += 1

    expected = loop(model, F.cross_entropy, (X, Y), optimizer, count)
    run = trained(DropPath("*.branch", 0.6, by_depth=by_depth))
    torch.testing.assert_close(weights_of(run), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, weights_of(trained()), atol=1e-4)
    assert run.metrics["val/loss"] == pytest.approx(F.cross_entropy(run.core.model(X), Y).item(), abs=1e-6)


def test_micro_batches_equal_one_batch_and_rate_zero_is_absence() -> None:
    plugin = {"layers": "*.branch", "rate": 0.5}
    four = trained(DropPath(**plugin), accumulate_grad_batches=4)
    torch.testing.assert_close(weights_of(four), weights_of(trained(DropPath(**plugin), batch_size=64)))
    assert torch.equal(weights_of(trained(DropPath("*.branch", 0.0))), weights_of(trained()))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch hides it, but not from an error filter
def test_a_compiled_network_follows_a_schedule() -> None:
    plugins = [StrengthSchedule("drop_path.rate", start=0.0, until=0.9), DropPath("*.branch", 0.5)]
    whole = {"backend": "eager", "fullgraph": True}
    compiled = trained(*plugins, compile=whole, limit_val_batches=0)
    plugins = [StrengthSchedule("drop_path.rate", start=0.0, until=0.9), DropPath("*.branch", 0.5)]
    eager = trained(*plugins, limit_val_batches=0)
    torch.testing.assert_close(weights_of(compiled), weights_of(eager), rtol=1e-5, atol=1e-6)


# ---- what is told ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "what"),
    [
        ("", r"\(\): layers= names no residual branch"),
        ("mlp", r"\(layers='mlp'\): pattern 'mlp' matches no layer of .*"),
    ],
)
def test_likely_branches_are_told(layers: str, what: str) -> None:
    with pytest.raises(UserError, match=rf"^DropPath{what}; likely branches of Sequential: layers='\*.branch'$"):
        trained(DropPath(layers))
    with pytest.raises(UserError, match=rf"^DropPath{what}; no likely branch was found; .* as '\*.mlp'$"):
        trained(DropPath(layers), model=nn.Sequential(nn.Linear(6, 3)))


def test_layers_that_are_no_branch_are_told() -> None:
    with pytest.warns(LintWarning, match=r"1 and 2 more is no residual branch: .* likely are layers='\*.branch'"):
        trained(DropPath("Block"), max_epochs=1)
    with pytest.warns(LintWarning, match=r"1.branch.0 and 5 more lies within another chosen layer"):
        trained(DropPath("*.branch*"), max_epochs=1)


def test_outputs_without_samples_first_are_refused() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.head = nn.Linear(2, 2), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = x.view(-1, 3, 2).transpose(0, 1)
            return self.head(h + self.branch(h)).mean(0)

    message = r"branch returns \(3, 16, 2\), whose first dimension is not the micro-batch's 16 samples; .*batch_first"
    with pytest.raises(UserError, match=message):
        trained(DropPath("branch"), model=Turned())


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_wrong_rates_are_refused(rate: float) -> None:
    with pytest.raises(UserError, match=r"^DropPath\("):
        DropPath("*", rate)
