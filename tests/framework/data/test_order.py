"""Weighted, balanced and length-grouped orders, against their definitions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch.utils.data import TensorDataset

from framework.data import Data
from framework.data.order import Groups, Order, weights_of_classes
from framework.errors import UserError
from framework.ops.keyed import Stream

X, Y = torch.arange(60.0)[:, None], torch.tensor([0] * 40 + [1] * 15 + [7] * 5)
LENGTHS = torch.randint(5, 60, (60,), generator=torch.Generator().manual_seed(0))


def epoch(data: Data, number: int = 0, **how: Any) -> list[list[int]]:
    loader = data.train_loader(seed=0, **how)
    loader.set_epoch(number)
    return [batch[0][:, 0].long().tolist() for window in loader for batch in window.batches]


def test_draws_have_the_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0])
    order = Order(4, weights, samples=8000)
    drawn, _ = order(Stream(0, "order"), 0)
    counts = torch.bincount(drawn, minlength=4)
    assert counts[0] == 0 and chisquare(counts[1:], weights[1:] * 1000).pvalue > 0.01
    assert torch.equal(order(Stream(0, "order"), 0)[0], drawn) and not torch.equal(
        order(Stream(0, "order"), 1)[0], drawn
    )


def test_without_replacement_the_first_place_has_the_weights_and_none_comes_twice() -> None:
    order = Order(3, torch.tensor([1.0, 2.0, 5.0]), replacement=False, samples=2)
    drawn = torch.stack([order(Stream(0, "order"), number)[0] for number in range(3000)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    assert chisquare(torch.bincount(drawn[:, 0]), torch.tensor([375.0, 750.0, 1875.0])).pvalue > 0.01
    second = torch.bincount(drawn[drawn[:, 0] == 2][:, 1], minlength=3)[:2].tolist()
    assert chisquare(second, [sum(second) / 3, sum(second) / 3 * 2]).pvalue > 0.01


@pytest.mark.parametrize("balance", ["class", Y, Y.tolist()])
def test_classes_in_balance(balance: Any) -> None:
    data = Data((X, Y), batch_size=60, balance=balance, epoch_samples=6000)
    drawn = Y[torch.tensor([*itertools.chain(*epoch(data))])]
    assert chisquare(torch.unique(drawn, return_counts=True)[1]).pvalue > 0.01
    assert torch.allclose(weights_of_classes(Y)[[0, 40, 55]], torch.tensor([1 / 40, 1 / 15, 1 / 5]).double())


def test_labels_of_a_data_set() -> None:
    samples = TensorDataset(X, Y)
    with pytest.raises(UserError, match="without reading all of its samples; give Data"):
        Data(samples, balance="class")
    samples.targets = Y.tolist()  # as torchvision's have them
    assert len(epoch(Data(samples, balance="class", batch_size=16))) == 4
    named = Data({"a": X, "b": Y}, input="a", target="b", balance="class")
    assert named.steps() == 1


def test_samples_per_epoch() -> None:
    few = Data((X, Y), batch_size=8, epoch_samples=20)
    assert [len(batch) for batch in epoch(few)] == [8, 8, 4] and few.steps() == 3
    assert len({*itertools.chain(*epoch(few))}) == 20 and epoch(few) != epoch(few, 1)
    many = [*itertools.chain(*epoch(Data((X, Y), batch_size=8, epoch_samples=130)))]
    assert len(many) == 130 and sorted(many[:60]) == list(range(60))


def test_batches_by_length_waste_little() -> None:
    grouped, plain = Data((X, Y), batch_size=8, lengths=LENGTHS), Data((X, Y), batch_size=8)

    def padding(batches: list[list[int]]) -> float:
        kept = [LENGTHS[batch] for batch in batches]
        return float(sum(len(one) * one.max() - one.sum() for one in kept) / LENGTHS.sum())

    for number in range(2):
        batches = epoch(grouped, number)
        assert sorted([*itertools.chain(*batches)]) == list(range(60)) and max(map(len, batches)) == 8
        assert padding(batches) < 0.4 * padding(epoch(plain, number))
    assert (
        epoch(grouped, 0) != epoch(grouped, 1) and len(epoch(grouped, 0)) == len(epoch(grouped, 1)) == grouped.steps()
    )
    assert [sorted(batch) for batch in epoch(grouped, 0)] != [sorted(batch) for batch in epoch(grouped, 1)]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_bound_on_tokens(world: int, accumulate: int) -> None:
    data = Data((X, Y), batch_size=64, lengths=LENGTHS.tolist(), tokens=200)
    whole = epoch(data)
    assert all(len(batch) * int(LENGTHS[batch].max()) <= 200 for batch in whole)
    assert sorted([*itertools.chain(*whole)]) == list(range(60))
    loaders = [data.train_loader(seed=0, rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    seen: list[int] = []
    for windows in zip(*loaders, strict=True):
        assert len({window.total for window in windows}) == 1
        assert sum(window.samples for window in windows) == windows[0].total
        assert [window.start for window in windows] == [0, windows[0].samples][:world]
        seen += [int(one) for window in windows for batch in window.batches for one in batch[0][:, 0]]
    assert len(set(seen)) == len(seen) >= 60 - 40
    if world == 1:
        assert seen == [*itertools.chain(*whole)]
    loader = loaders[0]
    step = next(iter(loader))
    assert loader.sample_at(0, step.start) == int(step.batches[0][0][0, 0])  # type: ignore[union-attr]


def test_sizes_of_groups_do_not_depend_on_the_epoch() -> None:
    groups = Groups(LENGTHS, 8, 100)
    order = Order(60, groups=groups)
    cuts = [order(Stream(0, "order"), number)[1] for number in range(3)]
    assert all(cut is not None and len(cut) == len(groups.sizes) + 1 and cut[-1] == 60 for cut in cuts)
    assert cuts[0] != cuts[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weights": [1.0]}, r"one number per training sample, \(60,\); received \(1,\)"),
        ({"weights": [-1.0] * 60}, "finite numbers of 0 or more"),
        ({"weights": ["a"] * 60}, "must be one number per sample"),
        ({"weights": [0.0] * 60}, "0 samples have a weight above 0"),
        ({"weights": [1.0] + [0.0] * 59, "replacement": False}, "1 samples have a weight above 0, for 60 an epoch"),
        ({"weights": [1.0] * 60, "balance": "class"}, "weights and balance=...\\): cannot be combined"),
        ({"lengths": LENGTHS, "epoch_samples": 3}, "cannot be combined"),
        ({"tokens": 10}, "needs the length of each training sample"),
        ({"lengths": LENGTHS, "tokens": 10}, r"tokens=10\): training sample \d+ alone has \d+"),
        ({"balance": "targets"}, "must be 'class', or the class of each"),
        ({"epoch_samples": 0}, "epoch_samples must be a whole number >= 1"),
    ],
)
def test_orders_that_cannot_be(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Data((X, Y), **given)
