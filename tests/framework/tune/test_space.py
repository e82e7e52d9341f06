"""What is searched: declared ranges of numbers in use, what is asked for, and which plugins may be left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from framework import Choices, LogRange, Range, UserError
from framework.tune.order import Order
from framework.tune.space import Space


def space(toy: Path, **given: Any) -> Space:
    order = Order(toy, **given)
    return Space(order, order.build())


def names(found: Space) -> list[str]:
    return [one.name for one in found.dimensions]


def suggested(found: Space, **values: Any) -> dict[str, Any]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(values)
    return found.suggest(study.ask())


def test_numbers_in_use_that_declare_a_range_are_searched(toy: Path) -> None:
    found = space(toy)
    assert names(found) == ["width", "input_noise.std", "hidden_noise.rate", "norm_penalty.alpha", "optimizer.lr"]
    assert found.defaults() == {
        "width": 8,
        "input_noise.std": 0.1,
        "hidden_noise.rate": 0.1,
        "norm_penalty.alpha": 1e-3,
        "optimizer.lr": 0.01,
    }


def test_what_is_fixed_is_not_searched_and_what_is_asked_for_is(toy: Path) -> None:
    found = space(
        toy,
        parameters={"width": 16},
        settings={"optimizer.lr": 0.1},
        search={"kind": "tanh,relu", "optimizer.weight_decay": LogRange(1e-4, 1e-1), "input_noise.std": "0.2..0.3"},
    )
    by_name = {one.name: one.searched for one in found.dimensions}
    assert by_name == {
        "kind": Choices("tanh", "relu"),
        "input_noise.std": LogRange(0.2, 0.3),
        "hidden_noise.rate": Range(0, 0.8),
        "norm_penalty.alpha": LogRange(1e-6, 1e-1),
        "optimizer.weight_decay": LogRange(1e-4, 1e-1),
    }
    assert "optimizer.weight_decay" not in found.defaults()  # 0 lies outside


def test_a_suggestion_is_in_the_form_of_fit(toy: Path) -> None:
    found = space(toy, search={"kind": "tanh,relu"}, cocktail=True)
    assert found.switches == ["input_noise", "hidden_noise", "norm_penalty"]
    on = {"use input_noise": True, "use hidden_noise": False, "use norm_penalty": True}
    chosen = suggested(found, **on, kind="relu", width=5)
    assert chosen["parameters"] == {"kind": "relu", "width": 5}
    assert chosen["without"] == ["hidden_noise"]
    assert set(chosen["settings"]) == {"input_noise.std", "norm_penalty.alpha", "optimizer.lr"}


def test_a_plugin_that_another_one_needs_stays(toy: Path) -> None:
    order = Order(toy, cocktail=True)
    found = Space(order, order.build())
    chosen = suggested(found, **{"use input_noise": True, "use hidden_noise": True, "use norm_penalty": False})
    order.spec(chosen).build().make_core(0, {})
    assert chosen["without"] == ["norm_penalty", "strength_schedule"]


def test_added_plugins_are_searched_and_left_out_by_not_adding_them(toy: Path) -> None:
    order = Order(toy, with_=["sam", ("mixup", {"alpha": 0.5})], cocktail=True)
    found = Space(order, order.build())
    assert {"sam.rho", "mixup.alpha"} <= set(names(found))
    chosen = suggested(found, **{"use sam": False, "use mixup": True, "mixup.alpha": 1.0})
    given = order.overrides(chosen)
    assert given["with_"] == [("mixup", {"alpha": 0.5})]
    assert given["settings"]["mixup.alpha"] == 1.0
    assert "sam" not in given["without"]


def test_settings_without_effect_are_not_searched(toy: Path) -> None:
    found = space(toy, search={"input_noise.kind": "gaussian,multiplicative", "hidden_noise.std": "0.1..0.2"})
    assert "hidden_noise.std" not in suggested(found)["settings"]  # its noise masks


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"search": {"widht": "1..2"}}, r"search widht: no such setting or parameter; did you mean 'width'\?"),
        (
            {"search": {"input_noise.std": "0.1..1"}, "without": ["input_noise"]},
            r"search input_noise.std: the plugin input_noise is left out",
        ),
        ({"search": {"width": "4..8"}, "parameters": {"width": 4}}, r"search width: it is fixed to 4 as well"),
        ({"search": {"width": "4.5..8"}}, r"width=4.5..8: must be LOW..HIGH in whole numbers"),
        ({"search": {"width": "4,8,4"}}, r"Choices: 4 is given twice"),
        ({"search": {"fold": "0,1"}, "folds": 2}, r"search fold, folds=2: each trial trains every fold"),
        ({"storage": "nonsense"}, r"storage='nonsense': must be an address"),
        ({"search": {"sam.rho": "0.1..1"}}, r"search sam.rho: the plugin sam is not in the recipe; add it by --with"),
        ({"search": {"norm_penalty.alpha": "-1..1"}}, r"norm_penalty.alpha=-1\.\.1: -1\.0 is not possible"),
        ({"search": {"optimizer.lr": "fast,slow"}}, r"optimizer.lr=fast, slow: 'fast' is not possible"),
        ({"folds": 3, "parameters": {"fold": 1}}, None),
        ({"metric": "val/f1"}, r"metric='val/f1': unknown whether more is better; give mode="),
    ],
)
def test_bad_input(toy: Path, given: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert names(space(toy, **given))
        return
    with pytest.raises(UserError, match=words):
        space(toy, **given)


def test_an_empty_space(toy: Path) -> None:
    fixed = {"input_noise.std": 0.1, "hidden_noise.rate": 0.1, "norm_penalty.alpha": 0.1, "optimizer.lr": 0.1}
    with pytest.raises(UserError, match=r"the space is empty: .* --search weight_noise.std=1e-3\.\.1e-1"):
        space(toy, parameters={"width": 4}, settings=fixed)


def test_the_direction_is_that_of_the_metric(toy: Path) -> None:
    for metric, mode in ((None, "min"), ("val/loss", "min"), ("val/accuracy", "max")):
        order = Order(toy, metric=metric)
        order.build()
        assert (order.metric, order.mode) == (metric or "val/loss", mode)


def led(toy: Path, tmp_path: Path) -> Path:
    """Return a recipe whose parameter sets a plugin's setting."""
    path = tmp_path / "led.py"
    text = toy.read_text().replace("    refuse: float = 0.0,\n", "    refuse: float = 0.0,\n    noise: float = 0.1,\n")
    path.write_text(text.replace("InputNoise(0.1)", "InputNoise(noise)"))
    return path


def test_a_setting_follows_the_parameter_that_sets_it(toy: Path, tmp_path: Path) -> None:
    path = led(toy, tmp_path)
    assert "input_noise.std" in names(space(path))
    for given in ({"parameters": {"noise": 0.1}}, {"parameters": {"noise": 0.3}}, {"search": {"noise": "0.05..0.5"}}):
        assert "input_noise.std" not in names(space(path, **given))
    found = space(path, parameters={"noise": 0.3}, search={"input_noise.std": "0.05..0.5"})
    assert "input_noise.std" in names(found)
    with pytest.raises(UserError, match=r"search input_noise.std: the parameter noise, searched too, sets it"):
        space(path, search={"noise": "0.05..0.5", "input_noise.std": "0.1..1"})
