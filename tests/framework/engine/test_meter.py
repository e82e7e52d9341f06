"""Means on the device."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from framework.engine.meter import Meter, scalars


def test_weighted_mean_by_hand() -> None:
    meter = Meter()
    for value, weight in ((1.0, 1.0), (4.0, 3.0)):
        meter.add("a", torch.tensor(value), weight)
    meter.add("b", torch.tensor([2.0]))
    assert meter.means() == ({"a": 13 / 4, "b": 2.0}, {"a": 4.0, "b": 1.0})


def test_means_start_again() -> None:
    meter = Meter()
    meter.add("a", torch.tensor(1.0))
    meter.means()
    assert meter.means() == ({}, {})
    meter.add("a", torch.tensor(3.0))
    assert meter.means()[0] == {"a": 3.0}


def test_many_values_are_folded_without_loss() -> None:
    meter = Meter()
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    for index, value in enumerate(values):
        meter.add("a", value, index)
    expected = (values.double() * torch.arange(1000)).sum() / torch.arange(1000).sum()
    assert meter.means()[0]["a"] == pytest.approx(expected.item(), rel=1e-12)


def test_long_sums_of_small_floats_do_not_stall() -> None:
    """In float32 a sum stops to grow; the meter adds up in float64."""
    meter = Meter()
    meter.add("a", torch.tensor(1.0), 2.0**25)
    for _ in range(300):
        meter.add("a", torch.tensor(0.0))
    assert meter.means()[1]["a"] == 2.0**25 + 300


def test_values_of_several_dtypes() -> None:
    meter = Meter()
    meter.add("a", torch.tensor(1.0, dtype=torch.bfloat16))
    meter.add("a", torch.tensor(2.0, dtype=torch.float64))
    assert meter.means()[0] == {"a": 1.5}


def test_no_weight_gives_no_number() -> None:
    meter = Meter()
    meter.add("a", torch.tensor(1.0), 0.0)
    assert math.isnan(meter.means()[0]["a"])


def test_scalars_keeps_order_and_reads_numbers_and_tensors() -> None:
    read = scalars({"a": 1, "b": torch.tensor([2.5]), "c": 3.0, "d": torch.tensor(4)})
    assert list(read.items()) == [("a", 1.0), ("b", 2.5), ("c", 3.0), ("d", 4.0)]


@pytest.mark.parametrize("at", [0, 1, 255, 256, 300, 600])
def test_a_meter_that_continues_from_its_state_gives_the_same_bits(at: int, tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(at)
    values = torch.rand(700, generator=draws) * 1e3
    weights = torch.rand(700, generator=draws).tolist()
    alone, first, second = Meter(), Meter(), Meter()
    for place, (value, weight) in enumerate(zip(values, weights, strict=True)):
        alone.add("a", value, weight)
        if place < at:
            first.add("a", value, weight)
    torch.save(first.state(), tmp_path / "state")
    second.restore(torch.load(tmp_path / "state", weights_only=True), torch.device("cpu"))
    for value, weight in zip(values[at:], weights[at:], strict=True):
        second.add("a", value, weight)
    assert second.means() == alone.means()


def test_a_state_stays_as_it_was_when_its_meter_continues() -> None:
    first, second = Meter(), Meter()
    first.add("a", torch.tensor(1.0))
    state = first.state()
    first.add("a", torch.tensor(3.0))
    second.restore(state, torch.device("cpu"))
    second.add("a", torch.tensor(5.0))
    assert (first.means()[0], second.means()[0]) == ({"a": 2.0}, {"a": 3.0})
    third = Meter()
    third.restore(state, torch.device("cpu"))
    assert third.means() == ({"a": 1.0}, {"a": 1.0})
