"""Size and drift of recurrent outputs by hand, as terms of a loss, and what they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from framework import Data, Recipe, UserError, fit
from plugins.activation_drift import ActivationDrift, drift, size
from plugins.optimizer import Optimizer

X = torch.randn(24, 6, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum((1, 2))[:, None]


class Net(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lstm = nn.LSTM(3, 8, batch_first=batch_first)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.out = self.lstm(x)[0]
        return self.head(self.out[:, -1])


def trained(*plugins: Any, model: Any = None, loss: Any = mse_loss, epochs: int = 2, **options: Any) -> Any:
    data = Data((X, Y), batch_size=options.pop("batch_size", 12))
    trainer = {"max_epochs": epochs, "enable_progress_bar": False, **options}
    plugins = (*plugins, Optimizer("SGD", lr=0.1))
    return fit(Recipe(model or Net(), data, loss, plugins=list(plugins), trainer=trainer), logs=None)


def weights(run: Any) -> Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def test_by_hand() -> None:
    h = torch.tensor([[[1.0, 0.0], [3.0, 1.0]], [[0.0, 0.0], [0.0, 2.0]]])
    assert size(h).item() == pytest.approx((1 + 9 + 1 + 4) / 8)
    assert drift(h).item() == pytest.approx((4 + 1 + 0 + 4) / 4)
    assert drift(h[:, :1]).item() == 0


def test_it_equals_terms_of_the_loss() -> None:
    model = Net()

    def loss(p: Tensor, y: Tensor) -> Tensor:
        h = model.out
        return mse_loss(p, y) + 2 * (h**2).mean() + 3 * ((h[:, 1:] - h[:, :-1]) ** 2).mean()

    expected = weights(trained(model=model, loss=loss))
    torch.testing.assert_close(weights(trained(ActivationDrift(2.0, 3.0))), expected)
    cut = trained(ActivationDrift(2.0, 3.0), batch_size=4, accumulate_grad_batches=3)
    torch.testing.assert_close(weights(cut), expected)


def test_outputs_become_slow() -> None:
    def moved(run: Any) -> float:
        with torch.no_grad():
            run.core.model.eval()(X)
        return drift(run.core.model.out).item()

    assert moved(trained(ActivationDrift(0.0, 100.0), epochs=20)) < 0.6 * moved(trained(epochs=20))


def test_other_outputs_are_refused() -> None:
    words = r"ActivationDrift\(layers='head'\): the output of head has shape \(12, 1\), and must be \(samples,"
    with pytest.raises(UserError, match=words):
        trained(ActivationDrift(layers="head"))
