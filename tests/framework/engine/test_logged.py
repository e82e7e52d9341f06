from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultCollection

from framework.engine.logged import add_logged, state_of_logged

REDUCTIONS: Any = {"mean": "mean", "most": max, "least": min, "total": torch.sum}


def _log(results: Any, values: list[float]) -> None:
    for value in values:
        results.batch_size = 4
        for name, reduction in REDUCTIONS.items():
            results.log("training_step", name, torch.tensor(value), on_step=False, on_epoch=True, reduce_fx=reduction)


def test_an_epoch_in_two_parts_is_reduced_as_one() -> None:
    whole, first, second = (_ResultCollection(training=True) for _ in range(3))
    _log(whole, [3.0, 1.0, 2.0])
    _log(first, [3.0, 1.0])
    _log(second, [2.0])
    kept = state_of_logged(first)
    add_logged(second, kept)
    metrics = [results.metrics(on_step=False)["callback"] for results in (whole, second)]
    assert metrics[0] == metrics[1]
    assert {name: float(value) for name, value in metrics[1].items()} == {
        "mean": 2.0,
        "most": 3.0,
        "least": 1.0,
        "total": 6.0,
    }


def test_nothing_was_logged() -> None:
    assert state_of_logged(None) == {} and pl.__name__
    add_logged(_ResultCollection(training=True), {"training_step.a": {"value": torch.ones(())}})
