"""The confidence penalty by hand, against torch's distributions, and as targets weigh in J."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework import Data, Recipe, UserError, fit
from plugins.confidence_penalty import ConfidencePenalty, binary_entropy, entropy
from plugins.optimizer import Optimizer

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3


def test_entropies_are_those_of_torch() -> None:
    logits = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1))
    expected = torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy()
    torch.testing.assert_close(entropy(logits), expected)
    torch.testing.assert_close(binary_entropy(logits), torch.distributions.Bernoulli(logits=logits).entropy())


def trained(loss: Any, plugins: Any, **trainer: Any) -> tuple[Tensor, Any]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    data = Data((X, Y), (X, Y), batch_size=trainer.pop("batch_size", 12))
    options = {"max_epochs": 2, "enable_progress_bar": False, **trainer}
    run = fit(Recipe(model, data, loss, plugins=[*plugins, Optimizer("SGD", lr=0.5)], trainer=options), logs=None)
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach(), run


@pytest.mark.parametrize("cut", [{}, {"batch_size": 4, "accumulate_grad_batches": 3}])
@pytest.mark.parametrize("threshold", [None, 1.0])
def test_it_equals_a_loss_by_hand(threshold: float | None, cut: dict[str, int]) -> None:
    def by_hand(p: Tensor, t: Tensor) -> Tensor:
        lacking = -torch.distributions.Categorical(logits=p).entropy()
        return F.cross_entropy(p, t) + 0.5 * (lacking if threshold is None else F.relu(threshold + lacking)).mean()

    ours, _ = trained(F.cross_entropy, [ConfidencePenalty(0.5, threshold=threshold)], **cut)
    torch.testing.assert_close(ours, trained(by_hand, [], **cut)[0])


def test_ignored_targets_do_not_count() -> None:
    loss = nn.CrossEntropyLoss(ignore_index=1)
    whole, _ = trained(loss, [ConfidencePenalty(0.5)])
    parts, _ = trained(loss, [ConfidencePenalty(0.5)], batch_size=4, accumulate_grad_batches=3)
    torch.testing.assert_close(whole, parts)

    def by_hand(p: Tensor, t: Tensor) -> Tensor:
        return loss(p, t) - 0.5 * torch.distributions.Categorical(logits=p[t != 1]).entropy().mean()

    torch.testing.assert_close(whole, trained(by_hand, [])[0])


def test_other_losses_are_refused() -> None:
    with pytest.raises(UserError, match=r"ConfidencePenalty: reads logits as .* and the loss is mse_loss"):
        trained(F.mse_loss, [ConfidencePenalty(0.1)])
