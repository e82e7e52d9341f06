"""How answers combine, apart from any training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from framework.errors import UserError
from framework.plugin import Plugin
from framework.plugin.answers import Answers, named_terms


class Add(Plugin):
    what: str = "a"

    def transform_batch(self, batch: Any, step: Any) -> Any:
        return batch + self.what

    def make_optimizer(self, groups: Any) -> Any:
        return self.what or None


class Silent(Plugin):
    pass


def test_fold_goes_in_recipe_order() -> None:
    answers = Answers([Add("x", name="1"), Silent(), Add("y", name="2")])
    assert answers.fold("transform_batch", "_", None) == "_xy"
    assert [plugin.name for plugin in answers.of("transform_batch")] == ["1", "2"]


def test_an_unused_hook_has_no_calls() -> None:
    answers = Answers([Silent()])
    assert answers.of("penalty") == []
    assert answers.sum("penalty", None) == {}
    assert answers.fold("transform_batch", "_", None) == "_"
    assert answers.sole("make_optimizer", []) is None


def test_sole_takes_the_one_answer_that_is_not_none() -> None:
    answers = Answers([Add("", name="1"), Add("y", name="2"), Silent()])
    assert answers.sole("make_optimizer", []) == "y"


def test_two_answers_are_an_error_that_names_both() -> None:
    answers = Answers([Add("x", name="one"), Add("y", name="two")])
    with pytest.raises(UserError, match=r"make_optimizer: 'one' and 'two' both answer.*--without two"):
        answers.sole("make_optimizer", [])


def test_named_terms() -> None:
    one = torch.tensor(1.0)
    assert named_terms("l2", None) == {}
    assert named_terms("l2", one) == {"penalty/l2": one}
    assert named_terms("l2", {"a": one}) == {"penalty/l2/a": one}


def test_a_forgotten_return_names_plugin_and_hook() -> None:
    class Forgets(Plugin):
        def transform_batch(self, batch: Any, step: Any) -> Any:
            batch.append(1)

    with pytest.raises(UserError, match="plugin 'forgets': transform_batch returned None"):
        Answers([Forgets()]).fold("transform_batch", [], None)
