"""What metrics have gathered goes into a checkpoint and out again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from framework.engine.metrics import restore_metric, state_of_metric

METRICS: dict[str, Callable[[], Metric]] = {
    "micro": lambda: MulticlassAccuracy(4, average="micro"),
    "of classes": lambda: MulticlassF1Score(4, average="none"),
    "a list": CatMetric,
    "a mean": MeanMetric,
    "compound": lambda: MulticlassAccuracy(4, average="micro") + MulticlassF1Score(4, average="micro"),
}


def shown(metric: Metric, start: int, end: int) -> Metric:
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(4, (6, 2, 10), generator=generator)
    for prediction, target in batches[start:end]:
        if isinstance(metric, (CatMetric, MeanMetric)):
            metric.update(prediction.float())
        else:
            metric.update(prediction, target)
    return metric


def through_a_file(state: dict, folder: Path) -> dict:
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_a_metric_that_goes_on_from_its_state_gives_the_same(make: Callable[[], Metric], tmp_path: Path) -> None:
    whole, begun, resumed = shown(make(), 0, 6), shown(make(), 0, 3), make()
    restore_metric(resumed, through_a_file(state_of_metric(begun), tmp_path))
    expected, result = whole.compute(), shown(resumed, 3, 6).compute()
    assert isinstance(result, Tensor)
    assert torch.equal(result, expected)
    assert not torch.equal(result, begun.compute())


def test_a_metric_that_has_seen_nothing_since_gives_its_number_without_a_warning(tmp_path: Path) -> None:
    """Torchmetrics warns of a metric that was never updated, which it counts apart from its state."""
    begun, resumed = shown(METRICS["micro"](), 0, 3), METRICS["micro"]()
    restore_metric(resumed, through_a_file(state_of_metric(begun), tmp_path))
    assert resumed.update_called
    assert torch.equal(resumed.compute(), begun.compute())


def test_a_number_that_was_worked_out_before_is_not_kept(tmp_path: Path) -> None:
    begun, other = shown(METRICS["micro"](), 0, 3), shown(METRICS["micro"](), 3, 6)
    wrong = other.compute()
    restore_metric(other, through_a_file(state_of_metric(begun), tmp_path))
    assert torch.equal(other.compute(), begun.compute())
    assert not torch.equal(other.compute(), wrong)
