"""Nested containers of any type and their copies."""

from __future__ import annotations

import collections
import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch

from framework.data.trees import entry, has_entry, leaves_of, map_leaves, rebuilt
from framework.errors import UserError


class Pair(NamedTuple):
    image: Any
    label: Any


class Annotated(tuple):
    """A tuple that carries an attribute."""


@dataclasses.dataclass(frozen=True)
class Frozen:
    image: Any
    label: Any
    made: list = dataclasses.field(init=False, default_factory=list)


class Own(Mapping):
    """A mapping of one's own, made of a mapping."""

    def __init__(self, held):
        self._held = dict(held)

    def __getitem__(self, key):
        return self._held[key]

    def __iter__(self):
        return iter(self._held)

    def __len__(self):
        return len(self._held)


class Row(Sequence):
    """A sequence of one's own, made of its items."""

    def __init__(self, items):
        self.held = list(items)

    def __getitem__(self, index):
        return self.held[index]

    def __len__(self):
        return len(self.held)


class Stubborn(Row):
    """A sequence that cannot be made of its items."""

    def __init__(self, *, size):
        super().__init__(range(size))


def add(leaf: Any) -> Any:
    return leaf + 1


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ((1, (2, [3])), (2, (3, [4]))),
        (Pair(1, {"a": 2}), Pair(2, {"a": 3})),
        ({"a": [1, 2]}, {"a": [2, 3]}),
        (collections.OrderedDict(b=1, a=2), collections.OrderedDict(b=2, a=3)),
        (collections.UserDict({"a": 1}), collections.UserDict({"a": 2})),
    ],
)
def test_leaves_are_changed_and_containers_keep_their_type(tree, expected):
    changed = map_leaves(tree, add)
    assert changed == expected
    assert type(changed) is type(expected)
    assert leaves_of(changed) == leaves_of(expected)


def test_what_did_not_change_is_the_same_object():
    kept = {"a": [1, 2]}
    tree = (kept, torch.zeros(1))
    assert map_leaves(tree, lambda leaf: leaf) is tree
    changed = map_leaves(tree, lambda leaf: leaf + 1 if isinstance(leaf, torch.Tensor) else leaf)
    assert changed[0] is kept


def test_containers_named_as_whole_are_leaves():
    boxes = [[1, 2], [3, 4]]
    assert map_leaves({"boxes": boxes, "label": 5}, lambda leaf: leaf if leaf is boxes else 0, {id(boxes)}) == {
        "boxes": boxes,
        "label": 0,
    }


def test_copies_leave_the_original_and_keep_what_it_carries():
    tagged = Annotated((1, 2))
    tagged.tag = "t"
    changed = rebuilt(tagged, {1: 5})
    assert (tuple(changed), changed.tag, tuple(tagged)) == ((1, 5), "t", (1, 2))
    default = collections.defaultdict(list, a=1)
    assert rebuilt(default, {"a": 2})["new"] == []
    assert default["a"] == 1
    frozen = Frozen(1, 2)
    assert (rebuilt(frozen, {"image": 7}).image, frozen.image) == (7, 1)
    assert rebuilt(frozen, {"image": 7}).made is frozen.made
    for own in (Own({"a": 1}), types.MappingProxyType({"a": 1})):
        new = rebuilt(own, {"a": 2})
        assert (new["a"], own["a"], type(new)) == (2, 1, type(own))
    row = Row([1, 2])
    assert (rebuilt(row, {0: 9}).held, row.held) == ([9, 2], [1, 2])


def test_types_that_cannot_be_made_again_are_refused_by_name():
    with pytest.raises(UserError, match=r"a batch of type Stubborn cannot be made again.*TypeError.*copy\(\)"):
        rebuilt(Stubborn(size=2), {0: 1})


def test_entries_by_key_or_field():
    assert has_entry({"a": 1}, "a")
    assert has_entry(Pair(1, 2), "label")
    assert not has_entry((1, 2), "label")
    assert (entry({"a": 1}, "a"), entry(Pair(1, 2), "label"), entry(Frozen(1, 2), "image")) == (1, 2, 1)
