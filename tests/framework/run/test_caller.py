"""A command leaves the caller's random generators as they were, and commands in threads wait for one another."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import framework
from framework import Plugin, Recipe, Run, export, fit, predict, validate
from framework.errors import UserError
from framework.run.caller import as_alone
from framework.run.result import Interrupted
from tests.conftest import weights_of

MakeRecipe = Callable[..., Recipe]

GIVEN = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


def state() -> tuple[Any, ...]:
    """Return the states of all generators, as values that can be compared."""
    numbers = np.random.get_state()  # noqa: NPY002
    variables = [os.environ.get(name) for name in GIVEN]
    return torch.get_rng_state().tolist(), numbers[1].tolist(), numbers[2:], random.getstate(), variables


def stir() -> tuple[Any, ...]:
    """Move all generators to a state that no run has, and return it."""
    torch.manual_seed(11), torch.rand(3), random.seed(12), random.random()
    np.random.seed(13), np.random.rand(5)  # noqa: NPY002
    return state()


class Ends(Plugin):
    """Ends training by an error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error_ = error

    def after_update(self, step: Any) -> None:
        raise self.error_


@pytest.fixture
def run(recipe: MakeRecipe, tmp_path: Path) -> Run:
    return fit(recipe, logs=tmp_path)


def noisy(recipe: MakeRecipe, mlp: Callable[..., nn.Module], **changes: Any) -> Recipe:
    made = recipe(**changes)
    made.model[1] = nn.Dropout(0.5)
    return made


def test_fit_leaves_the_generators(recipe: MakeRecipe, tmp_path: Path) -> None:
    before = stir()
    fit(recipe, logs=tmp_path)
    assert state() == before
    fit(recipe, logs=None, seed=5)
    assert state() == before


@pytest.mark.parametrize("error", [ValueError("mine"), UserError("mine"), KeyboardInterrupt()])
def test_a_fit_that_fails_leaves_them_too(recipe: MakeRecipe, error: BaseException) -> None:
    before = stir()
    with pytest.raises((type(error), Interrupted)):
        fit(lambda: recipe(plugins=[Ends(error)]), logs=None)
    assert state() == before


def test_a_recipe_that_fails_leaves_them_too() -> None:
    def wrong() -> Recipe:
        torch.rand(3)
        raise ValueError("mine")

    before = stir()
    with pytest.raises(ValueError, match="mine"):
        fit(wrong, logs=None)
    assert state() == before


@pytest.mark.parametrize("command", [validate, framework.test, predict])
def test_evaluation_leaves_them(command: Any, recipe: MakeRecipe, run: Run, tmp_path: Path) -> None:
    before = stir()
    command(run)
    assert state() == before
    command(recipe, logs=tmp_path)
    assert state() == before
    with pytest.raises(UserError):
        command(recipe, logs=tmp_path / "none")
    assert state() == before


def test_export_leaves_them(recipe: MakeRecipe, run: Run, tmp_path: Path) -> None:
    before = stir()
    export(run, tmp_path / "a.safetensors")
    export(recipe, tmp_path / "b.safetensors", logs=tmp_path)
    assert state() == before


def test_a_seed_of_lightnings_stays_the_callers(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    before = stir()
    fit(recipe, logs=None)
    assert state() == before


def test_the_runs_bits_do_not_depend_on_the_callers_generators(recipe: MakeRecipe, mlp: Any) -> None:
    ends = []
    for seed in range(2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)  # noqa: NPY002
        ends.append(weights_of(fit(lambda: noisy(recipe, mlp), logs=None).core))
    assert torch.equal(*ends)


def test_a_command_within_a_command_is_not_held_up(recipe: MakeRecipe, mlp: Any, run: Run) -> None:
    class Evaluates(Plugin):
        def after_update(self, step: Any) -> None:
            validate(run)

    alone = fit(lambda: noisy(recipe, mlp), logs=None)
    beside = fit(lambda: noisy(recipe, mlp, plugins=[Evaluates()]), logs=None)
    assert torch.equal(weights_of(alone.core), weights_of(beside.core))


def test_fits_in_threads_give_what_each_gives_alone(recipe: MakeRecipe, mlp: Any) -> None:
    def weights(seed: int) -> Any:
        return weights_of(fit(lambda: noisy(recipe, mlp), seed=seed, logs=None).core)

    alone, ends = [weights(seed) for seed in range(3)], {}
    threads = [threading.Thread(target=lambda seed=seed: ends.update({seed: weights(seed)})) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[seed], ends[seed]) for seed in range(3))


def test_another_thread_goes_on_after_an_error() -> None:
    with pytest.raises(ValueError), as_alone():
        raise ValueError
    thread = threading.Thread(target=_enter)
    thread.start()
    thread.join(timeout=30)
    assert not thread.is_alive()


def _enter() -> None:
    with as_alone(0):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cudas_generators_are_left(recipe: MakeRecipe) -> None:
    torch.cuda.manual_seed_all(3)
    torch.rand(3, device="cuda")
    before = torch.cuda.get_rng_state_all()
    fit(recipe, logs=None, trainer={"accelerator": "gpu", "devices": 1})
    assert all(map(torch.equal, before, torch.cuda.get_rng_state_all()))
