"""Batches from worker processes: the same as without them, in memory that is reused and never too early."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2  # noqa: F401 - with it channels are parted another way
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, Dataset, default_collate

from framework import Data
from framework.data import EvalLoader, TrainLoader
from framework.data.parcel import _LARGE, _MIDDLING, Opening, Packing, Request


class Pair(NamedTuple):
    first: Tensor
    second: Any


class Samples(Dataset[Any]):
    """Samples that each contain their index; made by a function of it."""

    def __init__(self, count: int, make: Any = None) -> None:
        self.count, self.make = count, make

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return (torch.full((3,), float(index)), index) if self.make is None else self.make(index)


def large(index: int) -> tuple[Tensor, int]:
    return torch.full((_LARGE // 16,), float(index)), index


def nested(index: int) -> Any:
    x = torch.full((2, 3), float(index))
    return {
        "pair": Pair(x, [x.double(), x > 3]),
        "half": x.bfloat16(),
        "scalar": torch.tensor(index),
        "empty": torch.empty(0, 3),
        "text": f"sample {index}",
        "number": index / 2,
        "array": x.numpy(),
    }


def photograph(index: int) -> Any:
    """An image as albumentations leaves it: channels side by side, sometimes cut out of a larger one."""
    rng = np.random.default_rng(index)
    wide = torch.from_numpy(rng.integers(0, 256, (96, 100, 4), dtype=np.uint8))
    return {
        "photograph": wide[:, :, :3].contiguous().permute(2, 0, 1),
        "with alpha": wide.permute(2, 0, 1),
        "numbers": wide[:, :, :2].float().permute(2, 0, 1),
        "cut out": wide[:, 2:98].permute(2, 0, 1),
        "double": wide.double().permute(2, 0, 1),
    }


def sequences(samples: list[Any]) -> PackedSequence:
    return pack_sequence([x for x, _ in samples])


def transposed(samples: list[Any]) -> Any:
    x, _ = default_collate(samples)
    return x.T, x.T.contiguous(), "as it is"


def growing(samples: list[Any]) -> Tensor:
    return torch.cat([x for x, index in samples for _ in range(index + 1)])


def mixed(index: int) -> Tensor:
    return torch.full((2,), float(index), dtype=torch.float64 if index % 2 else torch.float32)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    if isinstance(one, PackedSequence):
        return torch.equal(one.data, other.data) and torch.equal(one.batch_sizes, other.batch_sizes)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def loaders(data: Data) -> Iterator[TrainLoader | EvalLoader]:
    train, val = data.train_loader(seed=0), data.eval_loader("val")
    try:
        yield train
        yield val
    finally:
        train.close()
        val.close()


def batches_of(loader: Any) -> list[Any]:
    return [batch for window in loader for batch in getattr(window, "batches", [window])]


@pytest.mark.parametrize(
    ("make", "collate"),
    [
        (None, None),
        (nested, None),
        (mixed, None),
        (photograph, None),
        (None, sequences),
        (None, transposed),
        (None, growing),
    ],
)
def test_workers_hand_over_what_is_made_without_them(make: Any, collate: Any) -> None:
    samples = Samples(22, make)
    for count in (1, 2):
        plain, worked = (
            Data(samples, samples, batch_size=4, collate=collate, workers=workers) for workers in (0, count)
        )
        for one, other in zip(loaders(plain), loaders(worked), strict=True):
            for _ in range(2):
                assert all(same(a, b) for a, b in zip(batches_of(one), batches_of(other), strict=True))


@pytest.mark.parametrize("make", [None, large])
def test_batches_that_are_held_stay_as_they_are(make: Any) -> None:
    loader = Data(Samples(60, make), batch_size=4, workers=2).train_loader(seed=0)
    held = batches_of(loader)
    for x, y in held:
        assert torch.equal(x[:, 0], y.float())
    loader.close()
    assert sorted(index for _, y in held for index in y.tolist()) == list(range(60))


def test_memory_of_large_batches_is_used_again_once_nobody_holds_it() -> None:
    loader = Data(Samples(80, large), batch_size=4, workers=1).train_loader(seed=0)
    seen, kept = set(), None
    for window in loader:
        ((x, y),) = window.batches
        seen.add(x.data_ptr())
        if kept is None:
            kept, values = x[1:], x[1:].clone()
    del window, x, y
    gc.collect()
    assert len(seen) <= 4
    assert torch.equal(kept, values)
    loader.close()


def test_a_run_that_ends_early_leaves_nothing_behind_that_the_next_could_read() -> None:
    loader = Data(Samples(64), batch_size=4, workers=2).train_loader(seed=0)
    for epoch in range(6):
        loader.set_epoch(epoch)
        order, windows = loader.permutation().tolist(), iter(loader)
        for step in range(epoch):  # and one more is on its way each time, with its buffers
            _, y = next(windows).batches[0]
            assert y.tolist() == order[4 * step : 4 * step + 4]
        windows.close()
    loader.close()


def test_a_worker_that_writes_over_an_unread_batch_is_reported() -> None:
    sent: list[Any] = []
    packing = Packing(Samples(40), None)

    class Recording(Dataset[Any]):
        def __getitems__(self, request: Request) -> Any:
            return packing.__getitems__(request)

    requests = [Request(1, [index]) for index in range(7)]
    loader = DataLoader(Recording(), batch_sampler=requests, collate_fn=lambda parcel: parcel, num_workers=1)
    for parcel in loader:
        sent.append(parcel)
    opening = Opening()
    for parcel in sent[:3]:  # all three slots are known, and hold what came later
        opening._buffers |= {(parcel.worker, where): kept for where, kept in parcel.buffers.items()}
    with pytest.raises(RuntimeError, match="worker 0 wrote over batch 1 before it was read"):
        opening.open(sent[0])
    assert opening.open(sent[-1])[1].tolist() == [6]
    assert opening.open("no parcel") == "no parcel"


def test_a_sample_that_raises_spoils_no_later_batch() -> None:
    def make(index: int) -> Tensor:
        if index == 3:  # when the sample before it lies in a new buffer already
            raise ValueError("broken")
        return torch.full((_MIDDLING,), float(index))

    packing = Packing(Samples(12, make), None)

    class Tolerant(Dataset[Any]):
        def __getitems__(self, request: Request) -> Any:
            try:
                return packing.__getitems__(request)
            except ValueError:
                return None

    requests = [Request(1, [index, index + 1]) for index in range(0, 12, 2)]
    loader = DataLoader(Tolerant(), batch_sampler=requests, collate_fn=lambda parcel: parcel, num_workers=1)
    opening = Opening()
    opened = [opening.open(parcel) for parcel in loader]
    assert opened[1] is None
    assert [one[:, 0].tolist() for one in opened if one is not None] == [[0, 1], [4, 5], [6, 7], [8, 9], [10, 11]]


def test_spawned_workers_do_the_same() -> None:
    loader = Data(Samples(12), batch_size=4, workers=1).train_loader(seed=0)
    assert loader._workers is not None
    loader._workers._options["multiprocessing_context"] = "spawn"
    assert sorted(index for _, y in batches_of(loader) for index in y.tolist()) == list(range(12))
    loader.close()
