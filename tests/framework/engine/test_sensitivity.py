"""The service behind tuned strengths: the gradient of validation samples, in turn, and second derivatives by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from framework import Data, Plugin, Recipe, Step, fit
from framework.data.evaluation import EvalLoader, ReadyLoader
from framework.engine.sensitivity import _batches
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer


class Shift(Plugin):
    """Add a constant to the input, to which all it adds is proportional."""

    size: float = 0.5

    @property
    def proportional(self) -> tuple[str, ...]:
        return ("size",)

    def transform_batch(self, batch: Any, step: Step) -> Any:
        return batch[0] + self.size, batch[1]


class Look(Plugin):
    def attach(self, core: Any) -> None:
        self.core_, self.seen_, self.window_ = core, [], None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.window_ = batch

    def after_update(self, step: Step) -> None:
        weights = list(self.core_.model.parameters())
        self.seen_.append(self.core_.validation_gradient(weights, 4, step.index))
        ones = [torch.ones_like(weight) for weight in weights]
        self.found_ = self.core_.sensitivity(self.window_, ones, ["shift", "norm_penalty"])


@pytest.fixture(scope="module")
def looked() -> tuple[Look, Any, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)
    model = nn.Linear(3, 1).double()
    data = Data((x[:8], y[:8]), (x[8:], y[8:]), batch_size=8, eval_batch_size=4)
    look = Look()
    trainer = {"max_steps": 3, "enable_progress_bar": False, "precision": "64-true"}
    plugins = [Shift(), NormPenalty(0.3), look, Optimizer("SGD", lr=0.0)]
    fit(Recipe(model, data, mse_loss, plugins=plugins, trainer=trainer), logs=None)
    return look, model, x, y


def test_validation_samples_come_in_turn(looked: Any) -> None:
    look, model, x, y = looked
    for index, low in enumerate((8, 12, 8)):
        expected = torch.autograd.grad(mse_loss(model(x[low : low + 4]), y[low : low + 4]), list(model.parameters()))
        for a, b in zip(look.seen_[index], expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["held", "samples", "loader"])
def test_few_batches_are_loaded(kind: str) -> None:
    read: list[int] = []

    class Samples(Dataset[Tensor]):
        def __len__(self) -> int:
            return 7

        def __getitem__(self, index: int) -> Tensor:
            read.append(index)
            return torch.tensor(index)

    loader: EvalLoader | ReadyLoader
    if kind == "loader":
        loader = ReadyLoader(DataLoader(Samples(), batch_size=2), "val")
    else:
        loader = EvalLoader((torch.arange(7),) if kind == "held" else Samples(), batch_size=2)
    found = [
        [int(one) for batch in _batches(loader, lambda _: 3, look) for one in tree_leaves(batch)[0]]
        for look in range(4)
    ]
    assert found == [[0, 1, 2, 3, 4, 5], [6, 0, 1, 2, 3], [4, 5, 6, 0, 1], [2, 3, 4, 5, 6]]
    assert [len(list(_batches(loader, lambda _: 9, look))) for look in (0, 1)] == [4, 4]
    read.clear()
    list(_batches(loader, lambda _: 1, 1))
    assert 4 not in read


def test_second_derivatives_by_hand(looked: Any) -> None:
    look, model, x, y = looked
    size = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    weights = list(model.parameters())
    gradient = torch.autograd.grad(mse_loss(model(x[:8] + size), y[:8]), weights, create_graph=True)
    (slope,) = torch.autograd.grad(torch.stack([g.sum() for g in gradient]).sum(), [size])
    assert look.found_["shift"] == pytest.approx(float(slope * 0.5), rel=1e-10)
    assert look.found_["norm_penalty"] == pytest.approx(float(0.3 * model.weight.detach().sum()), rel=1e-10)
    assert all(weight.grad is None or not weight.grad.requires_grad for weight in weights)
