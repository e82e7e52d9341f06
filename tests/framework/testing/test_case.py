"""What is trained in a check: a plugin's examples, and runs that leave nothing behind."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from framework import Plugin, UserError
from framework.testing import TASKS, cases_of, check_named
from framework.testing.case import isolated
from framework.testing.compare import same_bits
from plugins.input_noise import InputNoise
from plugins.weight_noise import WeightNoise


def test_examples_say_task_companions_and_absence(harmless: type[Plugin]) -> None:
    class Exampled(harmless):
        examples = ({"factor": 0.1}, {"factor": 0.2, "in": "tokens", "with": {"weight_noise": {"std": 0.5}}})
        absent = (None, {"factor": 1.0})

    one, two = cases_of(Exampled)
    assert (one.task, one.absent, list(one.companions())) == (TASKS["images"], None, [])
    assert two.task is TASKS["tokens"]
    assert two.absent is not None
    assert two.absent().factor == 1.0
    assert str(two) == "Exampled(factor=0.2) + WeightNoise(std=0.5)"


def test_settings_go_on_top_of_the_first_example() -> None:
    (case,) = cases_of(InputNoise, {"kind": "multiplicative"})
    assert str(case) == "InputNoise(std=0.3, kind='multiplicative')"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": ({"in": "image"},)}, "there is no task 'image'; did you mean 'images'?"),
        ({"absent": (None, None)}, "2 entries for 1 examples"),
        ({"examples": ({"size": 3},)}, "unexpected keyword argument 'size'"),
    ],
)
def test_wrong_examples_are_told(changes: dict, message: str, harmless: type[Plugin]) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        cases_of(type("Exampled", (harmless,), changes))


def generators() -> list[object]:
    return [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002


def test_runs_leave_generators_and_threads_as_they_were() -> None:
    before, threads = generators(), torch.get_num_threads()
    with isolated():
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    check_named("undone")(cases_of(WeightNoise)[0]).require()
    assert same_bits(before, generators())
    assert torch.get_num_threads() == threads
