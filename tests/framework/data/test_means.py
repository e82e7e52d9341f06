from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework import Core, Data, Outcome, Recipe, Run, fit
from framework.data.means import is_elementwise, is_uneven, may_be_uneven, total_weight, why_not_alike
from plugins.activation_sparsity import ActivationSparsity
from plugins.optimizer import Optimizer

WEIGHT = torch.tensor([1.0, 10.0, 2.0, 1.0])
X = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
Y = torch.where(torch.arange(32) < 20, 0, torch.arange(32) % 4)
IGNORED = torch.where(torch.arange(32) % 8 < 3, -100, Y)  # unequal numbers per micro-batch
IGNORED[:8] = -100  # and one with none that counts


def trained(y: Tensor, loss: Any, size: int, k: int, **more: Any) -> Run:
    torch.manual_seed(0)
    options = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    data = Data((X, y), (X, y), batch_size=size, eval_batch_size=size)
    recipe = Recipe(
        nn.Sequential(nn.Linear(3, 4), nn.Identity()),
        data,
        loss,
        plugins=[ActivationSparsity(0.1, layers="1"), Optimizer("SGD", lr=0.1)],
        trainer={**options, "accumulate_grad_batches": k},
        **more,
    )
    return fit(recipe, logs=None)


@pytest.mark.parametrize(
    ("y", "loss"),
    [
        (Y, nn.CrossEntropyLoss(weight=WEIGHT)),
        (Y, nn.CrossEntropyLoss(ignore_index=0)),
        (Y, nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=2)),
        (Y, functools.partial(F.cross_entropy, weight=WEIGHT)),
        (IGNORED, nn.CrossEntropyLoss()),
        (IGNORED, F.cross_entropy),
    ],
    ids=["weights", "ignored", "both", "partial", "default", "function"],
)
def test_micro_batches_and_evaluation_have_the_whole_batchs_mean(y: Tensor, loss: Any) -> None:
    whole, parts = trained(y, loss, 32, 1), trained(y, loss, 8, 4)
    assert torch.allclose(whole.core.model[0].weight, parts.core.model[0].weight, atol=1e-6)
    assert parts.last["val/loss"] == pytest.approx(whole.last["val/loss"], abs=1e-5)
    assert parts.last["train/loss"] == pytest.approx(whole.last["train/loss"], abs=1e-5)
    right = loss(whole.core.model(X), y).item()
    assert whole.last["val/loss"] == pytest.approx(right, abs=1e-5)


class Tokens(Core):
    def count(self, batch: Any) -> int:
        return int((batch[1] + 1).sum())

    def compute_loss(self, batch: Any) -> Outcome:
        x, y = batch
        weight = (y + 1).float()
        return Outcome((self(x).square().mean(1) * weight).sum() / weight.sum())


def test_terms_are_means_over_samples_whatever_j_is() -> None:
    whole, parts = trained(Y, None, 32, 1, core=Tokens), trained(Y, None, 8, 4, core=Tokens)
    assert torch.allclose(whole.core.model[0].weight, parts.core.model[0].weight, atol=1e-6)
    term = "penalty/activation_sparsity"
    assert parts.last[term] == pytest.approx(whole.last[term], abs=1e-5)


def test_what_a_loss_divides_by() -> None:
    target = torch.tensor([[0, 1], [3, 2]])
    assert total_weight(nn.CrossEntropyLoss(weight=WEIGHT), target) == 14
    assert total_weight(nn.NLLLoss(weight=WEIGHT, ignore_index=1), target) == 4
    assert total_weight(F.cross_entropy, target) == 4  # as a part with ignored entries counts entries
    assert total_weight(F.cross_entropy, target[0]) is None
    assert total_weight(nn.CrossEntropyLoss(weight=WEIGHT), torch.rand(2, 4)) is None
    assert total_weight(nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), target) is None
    assert total_weight(nn.MSELoss(), target) is None
    assert is_uneven(nn.CrossEntropyLoss(ignore_index=3)) and not is_uneven(nn.CrossEntropyLoss())
    assert may_be_uneven(functools.partial(F.nll_loss, weight=WEIGHT)) and not may_be_uneven(None)


def test_element_by_element() -> None:
    assert is_elementwise(nn.L1Loss()) and is_elementwise(functools.partial(F.huber_loss, delta=2.0))
    assert not is_elementwise(F.cross_entropy)
    assert why_not_alike(torch.zeros(2, 3), torch.zeros(4)).endswith("the target (4,)")
    assert why_not_alike(torch.zeros(2), torch.zeros(2)) == "" == why_not_alike(torch.zeros(2), None)
