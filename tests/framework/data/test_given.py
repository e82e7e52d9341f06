"""Arguments that a ready loader does not read are refused beside it, and taken where another part reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from framework import Data, Recipe, UserError, fit

TENSORS = (torch.zeros(12, 3), torch.ones(12, 1))
LOADER = DataLoader(TensorDataset(*TENSORS), 4)


class Module(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return LOADER


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return zip(*TENSORS, strict=True)


@pytest.mark.parametrize(
    ("parts", "given", "names"),
    [
        ({"train": LOADER}, {"batch_size": 64}, "batch_size"),
        ({"train": LOADER}, {"batch_size": 8, "workers": 0}, r"batch_size=..., workers"),
        ({"train": LOADER}, {"eval_batch_size": 8}, "eval_batch_size"),
        ({"train": LOADER}, {"collate": list}, "collate"),
        ({"train": LOADER}, {"drop_last": True}, "drop_last"),
        ({"train": LOADER, "val": LOADER, "test": LOADER}, {"batch_size": 8}, "batch_size"),
        ({"train": LOADER, "val": TENSORS}, {"drop_last": True}, "drop_last"),
        ({"train": LOADER, "val": TENSORS}, {"batch_size": 8, "eval_batch_size": 8}, "batch_size"),
        ({"train": Stream(), "val": LOADER}, {"eval_batch_size": 8}, "eval_batch_size"),
        ({"train": iter([TENSORS])}, {"batch_size": 8}, "batch_size"),
        ({"train": Module()}, {"workers": 2}, "workers"),
    ],
)
def test_what_no_part_reads_is_refused(parts: Any, given: Any, names: str) -> None:
    with pytest.raises(UserError, match=rf"^Data\({names}=...\): a \w+ yields batches of its own") as caught:
        Data(**parts, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "given"),
    [
        ({"train": LOADER}, {}),
        ({"train": LOADER, "val": TENSORS}, {"batch_size": 8, "workers": 1, "collate": list}),
        ({"train": LOADER, "test": TENSORS}, {"eval_batch_size": 8}),
        ({"train": TENSORS, "val": LOADER}, {"batch_size": 8, "eval_batch_size": 3, "drop_last": True}),
        ({"train": Stream(), "val": LOADER}, {"batch_size": 8, "drop_last": True, "workers": 1}),
        ({"train": Stream()}, {"batch_size": 8, "workers": 1}),
        ({"train": Module(), "val": TENSORS}, {"batch_size": 8}),
        ({}, {"batch_size": 8}),
    ],
)
def test_what_a_part_reads_is_taken(parts: Any, given: Any) -> None:
    data = Data(**parts, **given)
    again = dataclasses.replace(data)
    assert (again.batch_size, again.workers) == (data.batch_size, data.workers)
    assert (data.batch_size, data.workers) == (given.get("batch_size", 64), given.get("workers", 0))


def test_the_other_part_is_cut_so() -> None:
    data = Data(LOADER, TENSORS, batch_size=5)
    assert [len(batch[0]) for batch in data.eval_loader("val")] == [5, 5, 2]
    options = {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = fit(Recipe(nn.Linear(3, 1), data, nn.functional.mse_loss, trainer=options), logs=None)
    batches = list(run.core.training_batches(2))
    assert run.core.at.index == 3 and [len(batch[0]) for batch in batches] == [4, 4]
