"""Evaluation on a user's loader; on samples see test_loaders."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from framework.data.evaluation import ReadyLoader
from framework.data.roles import Roles
from framework.errors import UserError


def test_ranks_take_turns_and_no_draw_is_left() -> None:
    loader = DataLoader(range(10), batch_size=3, shuffle=True)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    loaders = [ReadyLoader(loader, "val", rank=rank, world=3) for rank in range(3)]
    parts = [[int(one) for batch in mine for one in batch] for mine in loaders]
    assert torch.equal(torch.rand(2), expected)
    assert sorted([*itertools.chain(*parts)]) == list(range(10))
    assert [len(mine) for mine in loaders] == [2, 1, 1]
    whole = ReadyLoader(loader, "val")
    first = [batch.tolist() for batch in whole]
    assert first == [batch.tolist() for batch in whole] and len(whole) == 4
    shares = ReadyLoader(loader, "val", rank=1, world=3, sharded=True)
    assert len([*shares]) == 4
    whole.close()
    assert whole.exit_code is None


def test_parts_are_named() -> None:
    (batch,) = ReadyLoader([{"a": torch.ones(1), "b": torch.zeros(1)}], "val", roles=Roles("b", "a"))
    assert set(batch) == {"input", "target"}


def test_nothing_to_evaluate_on() -> None:
    with pytest.raises(UserError, match=r"Data\(test=...\): list yielded no batch"):
        list(ReadyLoader([], "test"))


def test_an_iterator_that_was_read() -> None:
    loader = ReadyLoader(iter([torch.zeros(1)]), "val")
    assert len(list(loader)) == 1
    with pytest.raises(UserError, match=r"Data\(val=...\): list_iterator is used up: give an object"):
        list(loader)
