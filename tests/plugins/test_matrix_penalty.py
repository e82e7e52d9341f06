"""The penalty in training: singular values go where each kind wants them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from framework import Data, Recipe, UserError, fit
from plugins.matrix_penalty import MatrixPenalty
from plugins.optimizer import Optimizer

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = X @ torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def trained(*plugins: Any, epochs: int = 60, loss: Any = mse_loss, **options: Any) -> Any:
    torch.manual_seed(2)
    model = nn.Linear(6, 4)
    data = Data((X, Y), batch_size=options.pop("batch_size", 16))
    trainer = {"max_epochs": epochs, "enable_progress_bar": False, **options}
    return fit(Recipe(model, data, loss, plugins=[*plugins, Optimizer("SGD", lr=0.05)], trainer=trainer), logs=None)


def values_of(run: Any) -> Tensor:
    return torch.linalg.svdvals(run.core.model.weight.detach())


def test_each_kind_does_what_it_says() -> None:
    plain = values_of(trained())
    orthogonal = values_of(trained(MatrixPenalty(1.0), epochs=200))
    assert (orthogonal - 1).abs().max() < 0.4 < (plain - 1).abs().max()
    assert values_of(trained(MatrixPenalty(0.3, "spectral")))[0] < 0.8 * plain[0]
    low = values_of(trained(MatrixPenalty(0.8, "nuclear")))
    assert low[-1] < 0.05 * low[0]


@pytest.mark.parametrize("kind", ["orthogonal", "spectral", "nuclear"])
def test_it_equals_a_term_of_the_loss(kind: Any) -> None:
    kept: list[nn.Linear] = []

    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            kept[:] = [self]
            return super().forward(x)

    def loss(p: Tensor, y: Tensor) -> Tensor:
        s = torch.linalg.svdvals(kept[0].weight)
        term = {"orthogonal": (s**2 - 1).square().sum() / 2, "spectral": s[0] ** 2 / 2, "nuclear": s.sum()}[kind]
        return mse_loss(p, y) + 0.1 * term

    ours = trained(MatrixPenalty(0.1, kind), epochs=3, batch_size=8, accumulate_grad_batches=2)
    torch.manual_seed(2)
    options = {"max_epochs": 3, "enable_progress_bar": False}
    recipe = Recipe(Model(6, 4), Data((X, Y), batch_size=16), loss, plugins=[Optimizer("SGD", lr=0.05)])
    other = fit(recipe, logs=None, trainer=options)
    torch.testing.assert_close(ours.core.model.weight, other.core.model.weight, rtol=1e-4, atol=1e-5)


def test_a_pattern_without_a_weight() -> None:
    with pytest.raises(UserError, match=r"MatrixPenalty\(weights='conv'\): pattern 'conv' matches no weight of Linear"):
        trained(MatrixPenalty(0.1, weights="conv"))
