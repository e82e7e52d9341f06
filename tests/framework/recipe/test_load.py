from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import pytest

from framework.errors import UserError
from framework.recipe.load import build_recipe, load_recipe, plugins_defined_by
from framework.recipe.recipe import Recipe
from framework.settings import Bounds

SMALL = """
import torch
from torch import nn
from framework import Data, Plugin, Recipe
from plugins.input_noise import InputNoise

class Halve(Plugin):
    factor: float = 0.5

def collate(samples):
    return samples

def recipe(width: int = 2) -> Recipe:
    x = torch.zeros(4, 3)
    return Recipe(nn.Linear(3, width), Data((x, x[:, 0]), collate=collate), plugins=[Halve()])
"""


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if "_is_recipe" in vars(sys.modules[name]):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_file(text: str, name: str = "small_recipe.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write_file


def test_builds_a_fresh_recipe_at_every_call(write: Callable[..., Path]) -> None:
    factory = load_recipe(write(SMALL))
    one, two = build_recipe(factory), build_recipe(factory, {"width": 5})
    assert isinstance(one, Recipe)
    assert (one.model.out_features, two.model.out_features) == (2, 5)
    assert one.plugins[0] is not two.plugins[0]


def test_reads_parameters_of_plain_data_by_their_types() -> None:
    seen = {}

    def factory(folder: Path, widths: tuple[int, ...] = (), rate: Annotated[float, Bounds(low=0)] = 0.0) -> Recipe:
        seen.update(folder=folder, widths=widths, rate=rate)
        return Recipe.__new__(Recipe)

    build_recipe(factory, {"folder": "/tmp", "rate": 1})
    assert seen == {"folder": Path("/tmp"), "widths": (), "rate": 1}
    with pytest.raises(UserError, match=r"rate=-1\): rate must be a number >= 0"):
        build_recipe(factory, {"folder": "/tmp", "rate": -1})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"widht": 3}, "has no parameter 'widht'; did you mean 'width'?"),
        ({"width": "many"}, r"width='many'\): width must be a whole number"),
        ({"width": 2.5}, r"width=2.5\): width must be a whole number"),
    ],
)
def test_wrong_parameters_are_reported(write: Callable[..., Path], parameters: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_recipe(load_recipe(write(SMALL)), parameters)


def test_a_missing_parameter_is_reported(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="needs a value for its parameter 'width'"):
        build_recipe(load_recipe(write("def recipe(width: int): ...")))


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (
            SMALL.replace("def recipe", "def recpie"),
            "a_recipe.py",
            "defines no function recipe.*; did you mean 'recpie'?",
        ),
        ("recipe = 3", "b_recipe.py", "recipe is of type int; write it as a function"),
        (SMALL, "c.d.py", "rename it without the dot in 'c.d'"),
        (SMALL, "notes.txt", "a recipe is a Python file"),
        (SMALL, "json.py", "has the name of an installed module .*rename the recipe"),
        (SMALL, "framework.py", "has the name of an installed module .*rename the recipe"),
        (SMALL, "sys.py", "has the name of an installed module .*rename the recipe"),
    ],
)
def test_files_that_are_no_recipes(write: Callable[..., Path], text: str, name: str, message: str) -> None:
    before = sys.modules.get(Path(name).stem)
    with pytest.raises(UserError, match=message):
        load_recipe(write(text, name))
    assert sys.modules.get(Path(name).stem) is before or name.endswith("recipe.py")


def test_an_absent_file_is_reported_with_its_neighbour(write: Callable[..., Path], tmp_path: Path) -> None:
    write(SMALL, "digits_mlp.py")
    with pytest.raises(UserError, match=r"no such recipe: .*digit_mlp.py; did you mean 'digits_mlp.py'\?"):
        load_recipe(tmp_path / "digit_mlp.py")
    with pytest.raises(UserError, match=r"is a folder; name a recipe file in it; known: digits_mlp.py"):
        load_recipe(tmp_path)


def test_what_is_no_recipe_comes_back(write: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"returned NoneType, not a Recipe; does it end in `return Recipe"):
        build_recipe(load_recipe(write("def recipe(): ...")))


def test_what_the_file_raises_stays_as_it_is_and_leaves_nothing_behind(write: Callable[..., Path]) -> None:
    path = write("import math\nmath.sqrt(-1)", "raising_recipe.py")
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        load_recipe(path)
    assert "raising_recipe" not in sys.modules
    path.write_text(SMALL)
    assert build_recipe(load_recipe(path))


def test_two_folders_may_hold_recipes_of_one_name(write: Callable[..., Path]) -> None:
    first = write("ONE = 1\n" + SMALL, "one/same_recipe.py")
    second = write(SMALL, "two/same_recipe.py")
    assert load_recipe(first).__globals__["ONE"] == 1
    assert "ONE" not in load_recipe(second).__globals__
    assert str(first.parent) not in sys.path
    assert load_recipe(first).__globals__["ONE"] == 1


def test_imports_of_neighbours_work(write: Callable[..., Path]) -> None:
    write("WIDTH = 7", "neighbour_of_recipe.py")
    path = write("from neighbour_of_recipe import WIDTH\n" + SMALL.replace("= 2", "= WIDTH"))
    assert build_recipe(load_recipe(path)).model.out_features == 7
    del sys.modules["neighbour_of_recipe"]


def _class_name(pickled: bytes) -> str:
    return type(pickle.loads(pickled)).__name__


def test_what_a_recipe_defines_reaches_spawned_processes(write: Callable[..., Path]) -> None:
    factory = load_recipe(write(SMALL, "spawned_recipe.py"))
    pickled = pickle.dumps(build_recipe(factory).plugins[0])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_class_name, (pickled,)) == "Halve"


def test_finds_the_plugins_that_the_file_defines_itself(write: Callable[..., Path]) -> None:
    assert list(plugins_defined_by(load_recipe(write(SMALL)))) == ["halve"]
