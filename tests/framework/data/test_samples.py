"""Samples are drawn for by epoch and index; on order and workers see test_loaders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from framework.data.roles import Roles
from framework.data.samples import Samples


class Drawn(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return {"a": torch.rand(1), "b": index}


def test_a_data_sets_own_draws_depend_on_epoch_and_sample_alone() -> None:
    samples = Samples(Drawn(), 0, ())
    first = samples[0, 1]["a"]
    assert samples[0, 2]["a"] != first != samples[1, 1]["a"]
    assert samples[0, 1]["a"] == first == Samples(Drawn(), 0, ())[0, 1]["a"]


def test_parts_are_named_before_transforms() -> None:
    seen = []

    def look(sample: Any, rng: Any) -> Any:
        seen.append(sorted(sample))
        return sample

    assert sorted(Samples(Drawn(), 0, [("look", look)], Roles("a", "b"))[0, 1]) == ["input", "target"]
    assert seen == [["input", "target"]]


def test_an_error_names_plugin_and_sample() -> None:
    def fails(sample: Any, rng: Any) -> Any:
        raise ValueError("no")

    with pytest.raises(ValueError) as caught:
        _ = Samples(Drawn(), 0, [("fails", fails)])[0, 2]
    assert "for training sample 2" in "".join(caught.value.__notes__)
