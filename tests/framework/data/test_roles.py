"""Which part of a batch is input, target and weight: by convention, and as declared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from framework.data.batch import has_target, input_of, replace, rest_of, size_of, target_of, weight_of
from framework.data.roles import Roles
from framework.errors import UserError

X, Y, W = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0]), torch.tensor([1.0, 2.0, 0.5])


class Scan(NamedTuple):
    label: Any
    image: Any


@pytest.mark.parametrize(
    "batch",
    [
        {"image": X, "label": Y},
        {"label": Y, "image": X, "path": ["a", "b", "c"]},
        {"x": X, "y": Y},
        {"inputs": X, "targets": Y},
        {"anything": X, "labels": Y, "text": ["a", "b", "c"]},
        Scan(Y, X),
        SimpleNamespace(input=X, target=Y),
    ],
    ids=str,
)
def test_parts_by_convention(batch: Any) -> None:
    assert input_of(batch) is X and target_of(batch) is Y and size_of(batch) == 3 and has_target(batch)
    assert weight_of(batch) is None
    changed = replace(batch, input=-X, target=1 - Y)
    assert type(changed) is type(batch)
    assert torch.equal(input_of(changed), -X) and torch.equal(target_of(changed), 1 - Y)
    assert input_of(batch) is X
    assert any(leaf is Y for leaf in rest_of(batch)) and not any(leaf is X for leaf in rest_of(batch))


def test_several_inputs_by_their_names() -> None:
    batch = {"input_ids": X, "attention_mask": X > 1, "labels": Y, "weight": W}
    assert list(input_of(batch)) == ["input_ids", "attention_mask"]
    assert target_of(batch) is Y and weight_of(batch) is W and size_of(batch) == 3
    changed = replace(batch, input={"input_ids": -X, "attention_mask": X > 2})
    assert torch.equal(changed["input_ids"], -X) and changed["labels"] is Y
    assert list(input_of({"pixel_values": X, "labels": Y})) == ["pixel_values"]
    assert not has_target({"input_ids": X}) and not has_target(X) and not has_target((X,))


def test_weights_are_one_number_a_sample() -> None:
    assert weight_of((X, Y, W)) is W and weight_of((X, Y)) is None
    for third in (X, torch.ones(()), [1.0, 2.0, 0.5]):
        with pytest.raises(UserError, match=r"third part must be the weights of its samples, shape \(3,\)"):
            weight_of((X, Y, third))


def test_declared_parts() -> None:
    batch = {"left": X, "right": X + 1, "same": Y, "importance": W}
    found = Roles(("left", "right"), "same", "importance")(batch)
    assert found["input"] == (X, batch["right"]) or found["input"][0] is X
    assert found["target"] is Y and weight_of(found) is W
    assert Roles({"a": "left"}, "same")(batch)["input"] == {"a": X}
    assert Roles(target=1, input=0, weight=2)([X, Y, W]) == {"input": X, "target": Y, "weight": W}
    assert Roles(weight="importance")({"x": X, "label": Y, "importance": W})["input"] is X
    assert Roles(input=1)((Y, X)) == {"input": X, "target": X}
    graph = SimpleNamespace(x=X, edge_index=Y, y=W)
    assert Roles(("x", "edge_index"), "y")(graph)["input"][1] is Y
    assert not Roles() and Roles(weight="w")


@pytest.mark.parametrize("given", [{"input": ()}, {"target": 1.5}, {"weight": True}, {"input": {"a": None}}])
def test_declarations_that_name_no_part(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be a key or position"):
        Roles(**given)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"x": X, "y": Y}, "no part 'pixels'; it is a mapping with 'x' and 1 more"),
        ((X, Y), "no part 'pixels'; it is a tuple of 2"),
        (Scan(Y, X), "no part 'pixels'; it is a Scan with label and 1 more"),
    ],
    ids=str,
)
def test_a_declared_part_that_is_not_there(batch: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Roles("pixels")(batch)


def test_any_key_can_be_declared_within_a_mapping() -> None:
    batch = {("a", 1): 1, 2: 2, "y": 3}
    assert Roles({"left": ("a", 1), "right": 2}, "y")(batch) == {"input": {"left": 1, "right": 2}, "target": 3}
    assert Roles([("a", 1), 2])(batch)["input"] == (1, 2)
