from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn

from framework.errors import UserError
from framework.ops.patterns import parameter_counts
from framework.plugin import Plugin
from framework.plugin.hooks import HOOK_POINTS, RULES
from framework.plugin.step import Step
from framework.recipe.recipe import Recipe
from framework.report.explain import explain


class Tilt(Plugin):
    angle: float = 0.25

    before = {"Warp": "a warp bends what was tilted", "Melt": "nothing is left to tilt"}

    def transform_batch(self, batch: Any, step: Step) -> Any:
        return batch


class Warp(Plugin):
    layers: str = "Tanh"

    def attach(self, core: Any) -> None:
        core.observe(self, self.layers)

    def transform_batch(self, batch: Any, step: Step) -> Any:
        return batch

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        return x

    def penalty(self, step: Step) -> Tensor | Mapping[str, Tensor] | None:
        return None


def row(text: str, start: str) -> list[str]:
    """Return the cells of the line whose first cell is ``start``, with those of the lines that go on with it."""

    line = next(line for line in text.splitlines() if line.strip().startswith(start + " "))
    return re.split(r"\s{2,}", line.strip())


def test_lists_plugins_in_order_and_how_results_combine(recipe: Callable[..., Recipe]) -> None:
    text = explain(recipe([Tilt(), Warp()]))
    assert row(text, "transform_batch")[1:3] == ["fold", "tilt, warp"]
    assert row(text, "transform_activation")[1:3] == ["fold", "warp"]
    assert row(text, "penalty")[1:3] == ["sum", "warp"]
    assert row(text, "fold") == ["fold", RULES["fold"]]
    assert row(text, "objective") == ["objective", "J (cross_entropy) + α·Ω (warp)"]
    assert row(text, "network")[1] == "Sequential, 910 parameters, 910 of them trained"
    assert row(text, "samples")[1] == "100 training, 41 validation, 39 test; 16 a batch"


def test_says_why(recipe: Callable[..., Recipe]) -> None:
    text = explain(recipe([Tilt(), Warp()]))
    assert "tilt  stands before  Warp  holds               a warp bends what was tilted" in text
    assert "tilt  stands before  Melt  not in this recipe  nothing is left to tilt" in text


def test_shows_settings_and_plain_callbacks(recipe: Callable[..., Recipe]) -> None:
    text = explain(recipe([Tilt(angle=0.5), Timer()]))
    assert row(text, "1") == ["1", "tilt", "Tilt", "angle=0.5"]
    assert row(text, "2") == [
        "2",
        "timer",
        "Timer",
        "a plain Lightning callback, which implements no hook point",
    ]


def test_every_hook_point_is_listed_and_lines_fit(recipe: Callable[..., Recipe]) -> None:
    plugins = [Warp(name=f"warp_with_a_rather_long_name_{number}") for number in range(12)]
    text = explain(recipe([*plugins]))
    assert max(map(len, text.splitlines())) <= 120
    for point in HOOK_POINTS:
        assert point.name in text
    assert "Hook points without a plugin: prepare_model, " in text


def test_a_recipe_without_plugins_is_explained_too(recipe: Callable[..., Recipe]) -> None:
    assert "Hook points without a plugin: " in explain(recipe())


def test_broken_relations_and_patterns_are_reported_as_in_training(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="'tilt' must stand before 'warp': a warp bends what was tilted"):
        explain(recipe([Warp(), Tilt()]))
    with pytest.raises(UserError, match=r"pattern 'Tahn' matches no layer of Sequential; did you mean 'Tanh'\?"):
        explain(recipe([Warp(layers="Tahn")]))


def test_counts_tied_and_frozen_parameters() -> None:
    one, two = nn.Linear(3, 3), nn.Linear(3, 3)
    two.weight = one.weight
    two.bias.requires_grad_(False)
    assert parameter_counts(nn.Sequential(one, two)) == (15, 12)
