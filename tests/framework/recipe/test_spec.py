"""A specification filled in from that of an earlier run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import mse_loss

from framework import Data, Plugin, Recipe
from framework.errors import UserError
from framework.recipe.spec import RunSpec
from framework.settings import plain
from plugins.hidden_noise import HiddenNoise
from plugins.sam import SAM


class Half(Plugin):
    factor: float = 0.5
    also: dict[str, Any] | None = None

    def after_update(self, step: Any) -> None: ...


class Third(Plugin):
    factor: float = 0.3

    def after_update(self, step: Any) -> None: ...


def tiny(
    width: int = 3, widths: tuple[int, ...] = (), kind: Literal["a", "b"] = "a", where: Path = Path("x")
) -> Recipe:
    model = nn.Linear(2, width)
    return Recipe(model, Data((torch.ones(4, 2), torch.ones(4, width))), loss=mse_loss, plugins=[Half(), Third()])


def spec(**given: Any) -> RunSpec:
    names = ("seed", "parameters", "trainer", "settings")
    rest = {"with_": given.get("with_", ()), "without": given.get("without", ())}
    return RunSpec(tiny, *(given.get(name) for name in names), **rest, on_nonfinite=given.get("on_nonfinite"))


def recorded(**given: Any) -> dict[str, Any]:
    """Return what run.json holds of a specification."""
    record: dict[str, Any] = json.loads(json.dumps(plain(spec(**given).record())))
    return record


EVERYTHING: dict[str, Any] = {
    "seed": 7,
    "parameters": {"width": 4, "widths": (5, 6), "kind": "b", "where": Path("y")},
    "trainer": {"max_epochs": 3, "precision": "32-true"},
    "settings": {"half.factor": 0.25, "half.also": {"a": [1, 2]}},
    "without": ["third"],
    "on_nonfinite": "skip",
}


def test_an_order_that_says_nothing_takes_all_of_the_record() -> None:
    new, old = spec(), spec(**EVERYTHING)
    new.on_top_of(recorded(**EVERYTHING), training=True)
    ours, theirs = new.build(), old.build()
    assert ours.parameters == theirs.parameters == {**EVERYTHING["parameters"]}
    assert [plugin.declared_ for plugin in ours.plugins] == [plugin.declared_ for plugin in theirs.plugins]
    assert ours.plugins[0].declared_["factor"] == 0.25
    assert (ours.trainer, new.seed, new.on_nonfinite) == (theirs.trainer, 7, "skip")
    assert torch.equal(ours.model.weight, theirs.model.weight)
    assert plain(new.record()) == plain(old.record())


def test_what_is_given_again_takes_precedence() -> None:
    new = spec(
        seed=0, parameters={"width": 5}, trainer={"max_epochs": 9}, settings={"half.factor": 1.0}, on_nonfinite="stop"
    )
    new.on_top_of(recorded(**EVERYTHING), training=True)
    built = new.build()
    assert (new.seed, new.on_nonfinite) == (0, "stop")
    assert built.parameters == {**EVERYTHING["parameters"], "width": 5}
    assert built.trainer == {"max_epochs": 9, "precision": "32-true"}
    assert built.plugins[0].declared_["factor"] == 1.0


def test_an_evaluation_leaves_what_is_about_training() -> None:
    new = spec()
    new.on_top_of(recorded(**EVERYTHING), training=False)
    assert (new.seed, new.trainer, new.on_nonfinite) == (7, {}, "stop")


def test_added_plugins_come_again_and_more_of_them_after() -> None:
    new = spec(with_=[("weight_noise", {"std": 0.5})])
    new.on_top_of(recorded(with_=[("input_noise", {"std": 0.25})]), training=True)
    assert [plugin.name for plugin in new.build().plugins] == ["half", "third", "input_noise", "weight_noise"]
    assert new.build().plugins[2].declared_["std"] == 0.25


def test_a_command_that_is_typed_once_more_adds_nothing_twice() -> None:
    again = {"with_": [("input_noise", {"std": 0.25})], "without": ["third"]}
    new = spec(**again)
    new.on_top_of(recorded(**again), training=True)
    assert [plugin.name for plugin in new.build().plugins] == ["half", "input_noise"]


def test_options_that_are_objects_are_not_recorded() -> None:
    record = recorded(trainer={"max_epochs": 2, "callbacks": [object()], "profiler": None})
    assert record["trainer"] == {"max_epochs": 2, "profiler": None}


@pytest.mark.parametrize("seed", [True, -1, 0.5])
def test_wrong_seeds(seed: Any) -> None:
    with pytest.raises(UserError, match="whole number"):
        spec(seed=seed)


def test_scalars_of_numpy_are_numbers_everywhere() -> None:
    given: dict[str, Any] = {
        "seed": np.int64(7),
        "parameters": {"width": np.int32(4)},
        "trainer": {"max_epochs": np.int64(3), "gradient_clip_val": np.float32(0.5)},
        "settings": {"half.factor": np.float32(0.25)},
        "with_": [("sam", {"rho": np.float32(0.5)})],
    }
    made = spec(**given).build()
    assert made.parameters["width"] == 4 and made.model.out_features == 4
    assert made.plugins[0].declared_["factor"] == 0.25 and made.plugins[-1].declared_["rho"] == 0.5
    assert [type(value) for value in made.trainer.values()] == [int, float]
    record = recorded(**given)
    assert (record["seed"], record["parameters"], record["settings"]) == (7, {"width": 4}, {"half.factor": 0.25})
    assert record["trainer"] == {"max_epochs": 3, "gradient_clip_val": 0.5}
    again = spec()
    again.on_top_of(record, training=True)
    assert [plugin.declared_ for plugin in again.build().plugins] == [plugin.declared_ for plugin in made.plugins]


def test_a_seed_of_numpys_has_bounds_too() -> None:
    with pytest.raises(UserError, match="seed=-1"):
        spec(seed=np.int64(-1))


def names_of(made: Recipe) -> list[str]:
    return [plugin.name for plugin in made.plugins if isinstance(plugin, Plugin)]


@pytest.mark.parametrize("given", [SAM(), "sam", ("sam", {}), ["sam", {}], SAM(rho=np.float32(0.05))])
def test_a_plugin_is_added_in_any_form(given: Any) -> None:
    made = spec(with_=[given], without=["third"]).build()
    assert names_of(made)[0] == "half" and isinstance(made.plugins[-1], SAM)
    assert made.plugins[-1] is not given


def test_a_plugin_object_is_recorded_by_name_and_settings() -> None:
    given = [SAM(rho=0.25), HiddenNoise("Linear", name="mine"), Half(factor=0.75, name="other")]
    record = recorded(with_=given)
    assert record["with"] == [
        ["sam", {"rho": 0.25}],
        ["hidden_noise", {"layers": "Linear", "name": "mine"}],
        ["half", {"factor": 0.75, "name": "other"}],  # of the recipe's own file
    ]
    again = spec()
    again.on_top_of(record, training=True)
    settings = {plugin.name: plugin.declared_ for plugin in again.build().plugins if isinstance(plugin, Plugin)}
    assert all(settings[one.name] == one.declared_ for one in given)


def test_a_plugin_object_is_not_added_twice_when_it_is_given_again() -> None:
    again = spec(with_=[SAM(rho=0.25)])
    again.on_top_of(recorded(with_=[SAM(rho=0.25)]), training=True)
    assert names_of(again.build()).count("sam") == 1


def test_each_network_gets_a_plugin_of_its_own() -> None:
    class Kept(Plugin):
        def __init__(self) -> None:
            super().__init__()
            self.seen_: list[int] = []

    ours, given = Kept(), []
    made = spec(with_=[ours])
    given = [made.build().plugins[-1] for _ in range(2)]
    assert all(type(one) is Kept for one in given)
    assert len({id(one) for one in (ours, *given)}) == 3


def test_a_plugin_that_run_json_cannot_hold_has_to_be_given_again() -> None:
    class Kept(Plugin):
        def after_update(self, step: Any) -> None: ...

    record = recorded(with_=[Kept()])
    assert record["with"] == [{"name": "kept", "class": f"{Kept.__module__}.{Kept.__qualname__}"}]
    with pytest.raises(UserError, match=r"with_: the run was started with the plugin 'kept'.*with_=\[Kept\(...\)\]"):
        spec().on_top_of(record, training=True)
    again = spec(with_=[Kept()])
    again.on_top_of(record, training=True)
    assert names_of(again.build()).count("kept") == 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([SAM], r"with_=\[<class .*SAM'>\]: must be a plugin.*write SAM\(\)"),
        ([("sam",)], r"with_=\[\('sam',\)\]: must be a plugin"),
        ([("sam", 0.1)], r"with_=\[\('sam', 0.1\)\]"),
        ([pl.callbacks.Timer()], "give a Lightning callback as trainer="),
        (SAM(), r"with_=SAM.*must be a list"),
        ("sam", r"with_='sam': must be a list; write with_=\['sam'\]"),
        (None, "with_=None: must be a list"),
    ],
)
def test_what_is_no_addition_is_refused(given: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        spec(with_=given)


def test_one_name_to_leave_out_is_no_list() -> None:
    with pytest.raises(UserError, match=r"without='third': must be a list; write without=\['third'\]"):
        spec(without="third")
