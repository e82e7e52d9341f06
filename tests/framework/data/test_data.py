"""Which data are taken, and the loaders that they give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from framework.data import Data, Window
from framework.errors import UserError


class Squares(Dataset[Any]):
    """Gives ``(index, index ** 2)``."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[float, int]:
        return float(index), index**2


def numbers(length: int, **options: Any) -> Data:
    x = torch.arange(float(length))
    return Data((x, x.long() ** 2), (x, x), **options)


def order_of(windows: Any) -> list[float]:
    return [value for window in windows for batch in window.batches for value in batch[0].tolist()]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(range(3))


def test_evaluation_with_fewer_samples_than_ranks_is_refused() -> None:
    data = Data((torch.zeros(4), torch.zeros(4)), (torch.zeros(1), torch.zeros(1)), batch_size=2)
    with pytest.raises(UserError, match=r"val.*1 samples for 2 ranks"):
        data.eval_loader("val", rank=0, world=2)


def test_joined_parts() -> None:
    x = torch.arange(5.0)
    joined = Data((x[:3],), (x[3:],), (x,), batch_size=2).joined()
    assert joined.train[0].tolist() == [0, 1, 2, 3, 4]
    assert joined.val[0].tolist() == [3, 4]
    sets = Data(Squares(3), Squares(2), batch_size=3).joined()
    assert sorted(order_of(sets.train_loader(seed=0))) == [0, 0, 1, 1, 2]
    lone = Data((x,), batch_size=2)
    assert lone.joined() is lone


def test_a_list_of_tensors_is_taken_as_a_tuple() -> None:
    data = Data([torch.zeros(3), torch.ones(3)], batch_size=2)
    assert isinstance(next(iter(data.train_loader(seed=0))), Window)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"train": ()}, "train=.*tuple must hold tensors.*received none"),
        ({"train": (np.zeros(3),)}, "train=.*received ndarray"),
        ({"train": (torch.zeros(3), torch.zeros(4))}, "same first dimension; received 3, 4$"),
        ({"train": (torch.zeros(0),)}, "train=.*no samples"),
        ({"train": object()}, "must be tensors, a data set .*; received object"),
        ({"train": torch.zeros(3)}, r"train=.*a single tensor.*\(x,\)"),
        ({"train": (torch.tensor(1.0),)}, "train=.*first dimension.*received a tensor without dimensions$"),
        ({"train": (torch.zeros(3, 2), np.zeros(3))}, "received ndarray$"),
        ({"train": (torch.zeros(999), [0] * 999)}, r"received int \(999 times\)$"),
        ({"train": (torch.zeros(3), [1, "a", 2.0, None, torch.tensor(1)])}, "received int, str, float and 2 others$"),
        (
            {"train": (torch.zeros(3), [torch.zeros(n) for n in range(3, 90)])},
            r"received 3 \(2 times\), 4, 5 and 84 others",
        ),
        ({"train": (torch.zeros(3),), "batch_size": torch.zeros(99, 2)}, r"batch_size=<Tensor of shape \(99, 2\)>\)"),
        ({"train": (torch.zeros(3),), "input": torch.zeros(99, 2)}, r"input=<Tensor of shape \(99, 2\)>\)"),
        ({"train": (torch.zeros(3),), "input": [torch.zeros(99)]}, r"input=\[tensor.{0,70}\.\.\.\): must be a key"),
        ({"train": (torch.zeros(3),), "val": Squares(0)}, "val=.*no samples"),
        ({"train": (torch.zeros(3),), "batch_size": 0}, "batch_size=0.*>= 1"),
        ({"train": (torch.zeros(3),), "batch_size": True}, "batch_size=True"),
        ({"train": (torch.zeros(3),), "batch_size": 2.0}, "batch_size=2.0"),
        ({"train": (torch.zeros(3),), "eval_batch_size": 0}, "eval_batch_size=0"),
        ({"train": (torch.zeros(3),), "workers": -1}, "workers=-1.*>= 0"),
    ],
)
def test_mistakes_are_reported(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        Data(**arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_part_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"no test part: give Data\(test=...\)"):
        numbers(3).eval_loader("test")


def test_numbers_of_numpy_are_numbers() -> None:
    assert Data((torch.zeros(4),), batch_size=np.int64(2)).batch_size == 2
