"""Lookahead against a loop by hand, its state over a resume and a later phase, and weights that do not train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from framework import Data, Plugin, Recipe, UserError, fit
from framework.plugin import Step
from framework.plugin.edits import WeightEdits
from plugins.early_stopping import EarlyStopping
from plugins.lookahead import Lookahead, pulled
from plugins.optimizer import Optimizer
from plugins.weight_average import WeightAverage

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def network() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(6, 1)


def recipe(*plugins: Any, model: Any = None, **options: Any) -> Recipe:
    data = Data((X, Y), batch_size=options.pop("batch_size", 8))
    trainer = {"max_steps": 13, "enable_progress_bar": False, **options}
    optimizer = Optimizer("SGD", lr=0.05, options={"momentum": 0.9})
    return Recipe(model or network(), data, mse_loss, plugins=[*plugins, optimizer], trainer=trainer)


def weights(run: Any) -> Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


@pytest.mark.parametrize("cut", [{}, {"batch_size": 4, "accumulate_grad_batches": 2}])
def test_it_equals_a_loop_by_hand(cut: dict[str, int]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = Data((X, Y), batch_size=8).train_loader(seed=0)
    slow = [p.detach().clone() for p in model.parameters()]
    step = 0
    for epoch in range(3):
        loader.set_epoch(epoch)
        for window in loader:
            (x, y) = window.batches[0]
            optimizer.zero_grad()
            mse_loss(model(x), y).backward()
            optimizer.step()
            step += 1
            if step % 3 == 0:
                with torch.no_grad():
                    for one, p in zip(slow, model.parameters(), strict=True):
                        one += 0.4 * (p - one)
                        p.copy_(one)
            if step == 13:
                break
    run = fit(recipe(Lookahead(every=3, alpha=0.4), **cut), seed=0, logs=None)
    torch.testing.assert_close(weights(run), nn.utils.parameters_to_vector(model.parameters()).detach())


def test_a_resumed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def made() -> Recipe:
        return recipe(Lookahead(every=4), max_epochs=4, max_steps=-1)

    whole = fit(made, logs=tmp_path / "whole")
    first = fit(made, logs=tmp_path / "cut", trainer={"max_epochs": 2})
    again = fit(made, logs=tmp_path / "cut", resume=first.folder, trainer={"max_epochs": 4})
    assert torch.equal(weights(again), weights(whole))


def test_one_is_the_optimizer_alone_and_frozen_weights_stay() -> None:
    assert torch.equal(weights(fit(recipe(Lookahead(alpha=1.0)), logs=None)), weights(fit(recipe(), logs=None)))
    model = network()
    before = model.bias.detach().clone()
    model.bias.requires_grad_(False)
    fit(recipe(Lookahead(every=2), model=model), logs=None)
    assert torch.equal(model.bias, before)


def test_a_round_by_hand() -> None:
    slow, fast = [torch.tensor([1.0, -2.0]), torch.tensor([[0.0]])], [torch.tensor([3.0, -2.0]), torch.tensor([[8.0]])]
    pulled(slow, fast, 0.25)
    assert [t.tolist() for t in slow] == [[1.5, -2.0], [[2.0]]]
    assert all(torch.equal(a, b) for a, b in zip(slow, fast, strict=True))
    assert slow[0].data_ptr() != fast[0].data_ptr()


def test_a_weight_that_is_thawed_again_begins_anew() -> None:
    plugin = Lookahead(every=1, alpha=0.5)
    model = network()
    plugin.attach(SimpleNamespace(model=model))  # type: ignore[arg-type]
    step = Step(0, WeightEdits())

    def update(by: float) -> None:
        plugin.begin_step(step)
        with torch.no_grad():
            for p in model.parameters():
                p += by * p.requires_grad
            plugin.after_update(step)

    start = model.weight.detach().clone()
    update(1.0)
    model.weight.requires_grad_(False)
    with torch.no_grad():
        model.weight.copy_(start)
    update(1.0)
    assert set(plugin.slow_) == {"bias"}
    assert torch.equal(model.weight, start)
    model.weight.requires_grad_(True)
    update(1.0)
    torch.testing.assert_close(model.weight.detach(), start + 0.5)


def test_a_weight_frozen_within_the_step_is_not_pulled() -> None:
    plugin, model, step = Lookahead(every=1), network(), Step(0, WeightEdits())
    plugin.attach(SimpleNamespace(model=model))  # type: ignore[arg-type]
    plugin.begin_step(step)
    with torch.no_grad():
        model.weight += 1
        model.bias += 1
    before, bias = model.weight.detach().clone(), model.bias.detach().clone()
    model.weight.requires_grad_(False)
    with torch.no_grad():
        plugin.after_update(step)
    assert torch.equal(model.weight, before)
    assert not torch.equal(model.bias, bias)


class Starts(Plugin):
    """Keeps how far slow weights are from the weights at the first update of each phase."""

    def attach(self, core: Any) -> None:
        self.far_: list[float] = []

    def begin_step(self, step: Step) -> None:
        lookahead: Any = step.plugins["lookahead"]
        if step.index == 0:
            pairs = [(slow, lookahead.all_[name].detach()) for name, slow in lookahead.slow_.items()]
            self.far_.append(max((slow - weight).abs().max().item() for slow, weight in pairs))
            assert lookahead.done_ == 0


def test_a_later_phase_begins_with_the_weights_that_it_starts_from() -> None:
    starts = Starts()
    other = (X[:8], Y[:8] + 3 * torch.arange(8)[:, None])
    plugins = [
        Lookahead(every=4),
        starts,
        EarlyStopping(then="continue", max_extra_epochs=1),
        Optimizer("SGD", lr=0.05),
    ]
    trainer = {"max_epochs": 3, "enable_progress_bar": False}
    fit(Recipe(network(), Data((X, Y), other, batch_size=8), mse_loss, plugins=plugins, trainer=trainer), logs=None)
    assert starts.far_ == [0.0, 0.0]


def test_a_resumed_state_follows_the_weights_and_a_new_run_has_none() -> None:
    plugin, model = Lookahead(), network()
    plugin.attach(SimpleNamespace(model=model))  # type: ignore[arg-type]
    plugin.load_state_dict({"slow": {"weight": torch.ones(1, 6), "lost": torch.ones(2)}, "done": 7})
    plugin.all_["weight"] = nn.Parameter(torch.ones(1, 6, device="meta"))  # as Lightning moves it to a device
    plugin.on_train_start(SimpleNamespace(global_step=7), None)  # type: ignore[arg-type]
    assert plugin.done_ == 7
    assert {name: slow.device.type for name, slow in plugin.slow_.items()} == {"weight": "meta"}
    plugin.on_train_start(SimpleNamespace(global_step=0), None)  # type: ignore[arg-type]
    assert plugin.state_dict() == {"slow": {}, "done": 0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lookahead(every=0), "every must be a whole number >= 1"),
        (lambda: Lookahead(alpha=0.0), "alpha must be a number > 0 and <= 1"),
        (lambda: Lookahead(alpha=1.5), "alpha must be a number > 0 and <= 1"),
        (lambda: fit(recipe(WeightAverage(), Lookahead()), logs=None), "lookahead.*before.*weight_average"),
    ],
)
def test_mistakes_are_reported(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
