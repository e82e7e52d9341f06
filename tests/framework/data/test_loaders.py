"""Windows, the keyed order of samples, and evaluation in order."""

from __future__ import annotations

import multiprocessing
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from framework.data import Data
from framework.errors import UserError


class Squares(Dataset[Any]):
    """Gives ``(index, index ** 2)``."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[float, int]:
        return float(index), index**2


class Noisy(Squares):
    """Draws from the global generators of torch, NumPy and Python."""

    def __getitem__(self, index: int) -> tuple[float, float]:
        return float(index), torch.rand(()).item() + np.random.rand() + random.random()  # noqa: NPY002


def numbers(length: int, **options: Any) -> Data:
    x = torch.arange(float(length))
    return Data((x, x.long() ** 2), (x, x), **options)


def order_of(windows: Any) -> list[float]:
    return [value for window in windows for batch in window.batches for value in batch[0].tolist()]


def shape_of(windows: Any) -> list[list[int]]:
    return [[len(batch[0]) for batch in window.batches] for window in windows]


def test_an_epoch_holds_every_sample_once_with_its_target() -> None:
    loader = numbers(23, batch_size=4).train_loader(seed=0)
    windows = list(loader)
    assert sorted(order_of(windows)) == list(range(23))
    assert all(torch.equal(b[0].long() ** 2, b[1]) for w in windows for b in w.batches)
    assert shape_of(windows) == [[4]] * 5 + [[3]]
    assert len(loader) == 6


def test_windows_hold_micro_batches_and_the_last_what_remains() -> None:
    windows = list(numbers(23, batch_size=4).train_loader(seed=0, accumulate=2))
    assert shape_of(windows) == [[4, 4], [4, 4], [4, 3]]
    assert [(w.start, w.total) for w in windows] == [(0, 8), (0, 8), (0, 7)]


def test_accumulation_cuts_the_same_order_in_other_pieces() -> None:
    one = order_of(numbers(23, batch_size=8).train_loader(seed=0))
    assert order_of(numbers(23, batch_size=4).train_loader(seed=0, accumulate=2)) == one


def test_drop_last_leaves_out_what_fills_no_step() -> None:
    loader = numbers(23, batch_size=4, drop_last=True).train_loader(seed=0, accumulate=2)
    assert shape_of(loader) == [[4, 4], [4, 4]]
    assert len(loader) == 2


def test_order_is_keyed_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[float]:
        loader = numbers(50, batch_size=8).train_loader(seed=seed)
        loader.set_epoch(epoch)
        return order_of(loader)

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("length", [24, 23, 31])
def test_ranks_share_each_step_without_repeats(world: int, length: int) -> None:
    whole = list(numbers(length, batch_size=4 * world).train_loader(seed=1, accumulate=2))
    loaders = [
        numbers(length, batch_size=4).train_loader(seed=1, accumulate=2, rank=rank, world=world)
        for rank in range(world)
    ]
    for step, windows in enumerate(zip(*loaders, strict=True)):
        assert order_of(windows) == order_of([whole[step]])
        starts = [window.start for window in windows]
        sizes = [sum(len(batch[0]) for batch in window.batches) for window in windows]
        assert starts == [sum(sizes[:rank]) for rank in range(world)]
        assert {window.total for window in windows} == {sum(sizes)}
        assert max(sizes) - min(sizes) <= 1


def test_fewer_samples_than_ranks_are_left_out_on_every_rank() -> None:
    loaders = [numbers(9, batch_size=2).train_loader(seed=0, rank=rank, world=4) for rank in range(4)]
    assert [len(loader) for loader in loaders] == [1] * 4
    assert sum(len(order_of(loader)) for loader in loaders) == 8


def test_an_epoch_begun_in_the_middle_continues_with_the_same_windows() -> None:
    for data in (numbers(23, batch_size=4), Data(Squares(23), batch_size=4)):
        whole = list(data.train_loader(seed=0))
        loader = data.train_loader(seed=0)
        loader.start = 2
        assert order_of(loader) == order_of(whole[2:])
        loader.set_epoch(0)
        assert len(list(loader)) == 4
        loader.set_epoch(1)
        assert len(list(loader)) == 6


def drawn(sample: Any, rng: np.random.Generator) -> Any:
    return sample[0] + rng.normal(), sample[1]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("dataset", [Squares(30), Noisy(30)])
def test_samples_are_the_same_for_any_number_of_workers(dataset: Squares) -> None:
    def epochs(workers: int) -> list[list[Any]]:
        loader = Data(dataset, batch_size=4, workers=workers).train_loader(seed=0, transforms=[("noise", drawn)])
        kept = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            kept.append([torch.stack([part.double() for part in b]) for w in loader for b in w.batches])
        loader.close()
        return kept

    none = epochs(0)
    for workers in (1, 3):
        for one, other in zip(none, epochs(workers), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    first, second = (torch.cat(epoch, 1)[0].sort().values for epoch in none)
    assert not torch.equal(first, second), "each epoch has its own order"


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
def test_workers_end_on_request_and_start_again() -> None:
    """Left to the garbage collector each would hold the end of a run up for five seconds."""
    others = set(multiprocessing.active_children())  # of loaders that earlier tests left to the garbage collector
    data = Data(Squares(30), Squares(8), batch_size=4, workers=1)
    for loader in (data.train_loader(seed=0), data.eval_loader("val")):
        whole = list(loader)
        next(iter(loader))  # one that is left in the middle
        assert len(set(multiprocessing.active_children()) - others) == 1
        loader.close()
        assert not set(multiprocessing.active_children()) - others
        assert len(list(loader)) == len(whole)
        loader.close()


def test_transforms_are_folded_in_order_each_with_draws_of_its_own() -> None:
    def add(sample: Any, rng: np.random.Generator) -> Any:
        return sample[0] + 1, rng.random()

    def double(sample: Any, rng: np.random.Generator) -> Any:
        return sample[0] * 2, sample[1] - rng.random()

    batch = next(iter(numbers(8, batch_size=8).train_loader(seed=0, transforms=[("a", add), ("b", double)]))).batches[0]
    assert sorted(batch[0].tolist()) == [2 * (x + 1) for x in range(8)]
    assert (batch[1] != 0).all(), "two names, two streams"
    alone = next(iter(numbers(8, batch_size=8).train_loader(seed=0, transforms=[("c", add), ("a", add)]))).batches[0]
    other = next(iter(numbers(8, batch_size=8).train_loader(seed=0, transforms=[("a", add)]))).batches[0]
    assert torch.equal(alone[1], other[1]), "who else transforms changes nobody's draws"


def test_a_transform_leaves_order_and_windows_as_they_are() -> None:
    plain = list(numbers(23, batch_size=4).train_loader(seed=0, accumulate=2))
    through = list(numbers(23, batch_size=4).train_loader(seed=0, accumulate=2, transforms=[("n", lambda s, rng: s)]))
    assert order_of(through) == order_of(plain)
    assert [w[1:] for w in through] == [w[1:] for w in plain]


def stack_reversed(samples: list[Any]) -> Any:
    return torch.tensor([float(x) for x, _ in samples]).flip(0), torch.tensor([int(y) for _, y in samples]).flip(0)


@pytest.mark.parametrize("transforms", [[], [("nothing", lambda sample, rng: sample)]])
def test_collate_is_used_with_tensors_too(transforms: list[Any]) -> None:
    data = numbers(8, batch_size=8, collate=stack_reversed)
    plain = order_of(numbers(8, batch_size=8).train_loader(seed=0))
    assert order_of(data.train_loader(seed=0, transforms=transforms)) == plain[::-1]
    assert next(iter(data.eval_loader("val")))[0].tolist() == list(range(7, -1, -1))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("part", [torch.arange(10.0), Squares(10)])
def test_evaluation_goes_in_order_and_each_sample_once(world: int, part: Any) -> None:
    part = (part, part) if isinstance(part, torch.Tensor) else part
    data = Data((torch.zeros(4), torch.zeros(4)), part, batch_size=2, eval_batch_size=3)
    loaders = [data.eval_loader("val", rank=rank, world=world) for rank in range(world)]
    assert [x for loader in loaders for batch in loader for x in batch[0].tolist()] == list(range(10))
    assert [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders]


def test_too_few_samples_for_a_step() -> None:
    with pytest.raises(UserError, match="3 training samples do not fill a step of 8; lower batch_size"):
        numbers(3, batch_size=4, drop_last=True).train_loader(seed=0, accumulate=2)
