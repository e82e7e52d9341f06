"""Lookahead against a loop by hand, its state over a resume, and weights that do not train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from framework import Data, Recipe, fit
from plugins.lookahead import Lookahead
from plugins.optimizer import Optimizer

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
    assert torch.allclose(weights(fit(recipe(Lookahead(alpha=1.0)), logs=None)), weights(fit(recipe(), logs=None)))
    model = network()
    before = model.bias.detach().clone()
    model.bias.requires_grad_(False)
    fit(recipe(Lookahead(every=2), model=model), logs=None)
    assert torch.equal(model.bias, before)
