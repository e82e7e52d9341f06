"""What a part of the data may be."""

from __future__ import annotations

import torch

from framework.data import as_dataset, length_of
from framework.data.parts import checked


def test_tensors_and_data_sets_are_parts_alike() -> None:
    part = (torch.arange(3), torch.arange(3) ** 2)
    dataset = as_dataset(part)
    assert length_of(part) == length_of(dataset) == 3
    assert dataset[2] == (2, 4)
    assert as_dataset(dataset) is dataset


def test_a_list_of_tensors_becomes_a_tuple_and_a_data_set_stays() -> None:
    x = torch.zeros(3)
    assert checked("train", [x, x]) == (x, x)
    dataset = as_dataset((x,))
    assert checked("train", dataset) is dataset
