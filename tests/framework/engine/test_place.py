"""The position on a user's loader goes into a checkpoint and back; runs that use it are in test_loading."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchmetrics import MeanMetric

from framework.data.ready import WindowLoader
from framework.engine.place import Place


def at(done: int, *, within: bool, fn: str = "fit", world: int = 1) -> tuple[Any, dict[str, Any]]:
    trainer = SimpleNamespace(state=SimpleNamespace(fn=fn), world_size=world, global_rank=0)
    loops = {
        "fit_loop": {
            "epoch_progress": {"current": {"processed": 2, "ready": 3 if within else 2}},
            "epoch_loop.batch_progress": {"current": {"processed": done}},
        }
    }
    return SimpleNamespace(trainer=trainer), {"framework": {}, "loops": loops}


@pytest.mark.parametrize("within", [True, False])
def test_a_place_within_an_epoch(within: bool) -> None:
    objective, checkpoint = at(3, within=within)
    loader, metric = WindowLoader([torch.zeros(1)] * 8), MeanMetric()
    metric.update(4.0)
    windows = iter(loader)
    for _ in range(3):
        next(windows)
    Place(objective).keep(checkpoint, loader, {"mean": metric})
    place = Place(objective)
    place.find(checkpoint)
    assert (place.epoch, place.done) == (2, 3 if within else 0)
    other, again = WindowLoader([torch.zeros(1)] * 8), MeanMetric()
    place.put(other)
    place.put_metrics({"mean": again, "unknown": MeanMetric()})
    assert (other.epoch, other.start) == (2, place.done) and len(list(other)) == (5 if within else 8)
    assert again.update_called is within


def test_nothing_is_kept_of_samples_nor_taken_outside_of_fit() -> None:
    objective, checkpoint = at(3, within=True)
    Place(objective).keep(checkpoint, None)
    assert checkpoint["framework"] == {}
    Place(objective).keep(checkpoint, WindowLoader([]))
    for other in (at(3, within=True, fn="test")[0], at(3, within=True, world=2)[0]):
        place = Place(other)
        place.find(checkpoint)
        assert place.epoch == 0
