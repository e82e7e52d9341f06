"""Label smoothing equals torch's own, whatever counts in J, and can be tuned."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework import Data, Recipe, UserError, fit
from plugins.label_smoothing import LabelSmoothing, evened
from plugins.mixup import Mixup
from plugins.optimizer import Optimizer

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3
YES = torch.stack([Y == 0, Y > 0], dim=1).float()
CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


def trained(
    loss: Any, plugins: Any, target: Tensor = Y, weight: Tensor | None = None, **trainer: Any
) -> tuple[Tensor, Any]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3 if target.ndim == 1 else 2))
    part = (X, target) if weight is None else (X, target, weight)
    data = Data(part, (X, target), batch_size=trainer.pop("batch_size", 12))
    options = {"max_epochs": 2, "enable_progress_bar": False, **trainer}
    plugins = [*plugins, Optimizer("SGD", lr=0.5)]
    run = fit(Recipe(model, data, loss, plugins=plugins, trainer=options), logs=None)
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach(), run


@pytest.mark.parametrize("cut", [{}, {"batch_size": 4, "accumulate_grad_batches": 3}])
@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({}, None),
        ({"weight": CLASS_WEIGHTS}, None),
        ({"ignore_index": 1}, None),
        ({"weight": CLASS_WEIGHTS, "ignore_index": 0}, torch.linspace(0, 2, 24)),
    ],
)
def test_it_is_torchs_own(options: dict[str, Any], weight: Tensor | None, cut: dict[str, int]) -> None:
    target = Y.clone()
    target[:8] = options.get("ignore_index", Y[0])  # micro-batches of which none counts, or few do
    ours, run = trained(nn.CrossEntropyLoss(**options), [LabelSmoothing(0.2)], target, weight, **cut)
    expected, other = trained(nn.CrossEntropyLoss(label_smoothing=0.2, **options), [], target, weight, **cut)
    torch.testing.assert_close(ours, expected)
    assert run.metrics["val/loss"] != pytest.approx(other.metrics["val/loss"])  # that of the clean targets


def test_as_a_function_and_on_mixed_targets() -> None:
    ours, _ = trained(F.cross_entropy, [Mixup(1.0), LabelSmoothing(0.2)])
    expected, _ = trained(functools.partial(F.cross_entropy, label_smoothing=0.2), [Mixup(1.0)])
    torch.testing.assert_close(ours, expected)


def test_labels_of_yes_or_no() -> None:
    ours, _ = trained(nn.BCEWithLogitsLoss(), [LabelSmoothing(0.2)], YES)
    expected, _ = trained(lambda p, t: F.binary_cross_entropy_with_logits(p, 0.8 * t + 0.1), [], YES)
    torch.testing.assert_close(ours, expected)


def test_an_even_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0]]).log()
    even, halves = evened(F.cross_entropy)
    assert even(logits, torch.tensor([0])).item() == pytest.approx(-(torch.tensor([0.25, 0.75]).log().mean().item()))
    assert not halves


@pytest.mark.parametrize(
    ("loss", "name"), [(F.mse_loss, "mse_loss"), (nn.NLLLoss(), "NLLLoss"), (lambda p, t: p.sum(), "<lambda>")]
)
def test_other_losses_are_refused(loss: Any, name: str) -> None:
    with pytest.raises(UserError, match=f"LabelSmoothing: reads torch's cross_entropy .* and the loss is {name}"):
        trained(loss, [LabelSmoothing()])
