"""What a step draws, and what it records."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from framework.plugin import Plugin
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step


class Noise(Plugin):
    pass


NOISE, OTHER = Noise(), Noise(name="other")


def step_at(index: int = 0, **places: Any) -> Step:
    step = Step(0, WeightEdits())
    step.index = index
    for name, value in places.items():
        setattr(step, name, value)
    return step


def drawn(cuts: list[int], shape: tuple[int, ...], kind: str, dtype: torch.dtype, ranks: int = 1) -> Tensor:
    """Return the draws of a step whose batch is cut into micro-batches of these sizes."""
    rows, start = [], 0
    for micro, size in enumerate(cuts):
        step = step_at(3, micro=micro // ranks, rank=micro % ranks, start=start, count=size, samples=sum(cuts))
        rows.append(getattr(step, kind)(NOISE, torch.empty(size, *shape, dtype=dtype)))
        start += size
    return torch.cat(rows)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (64,), (3, 32, 32)])
@pytest.mark.parametrize("cuts", [[4, 3], [1] * 7, [2, 5], [6, 1]])
def test_draws_do_not_depend_on_how_the_batch_is_cut(
    kind: str, dtype: torch.dtype, shape: tuple[int, ...], cuts: list[int]
) -> None:
    whole = drawn([7], shape, kind, dtype)
    assert whole.dtype == dtype
    assert torch.equal(drawn(cuts, shape, kind, dtype), whole)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_what_is_drawn_may_be_changed(kind: str) -> None:
    step, like = step_at(3, count=4, samples=4), torch.empty(4, 5)
    first = getattr(step, kind)(NOISE, like)
    kept = first.clone()
    first.zero_()
    assert torch.equal(getattr(step, kind)(NOISE, like), kept)


def test_draws_differ_by_step_plugin_and_who() -> None:
    like = torch.empty(4, 5)
    draws = [
        step_at(0, count=4).normal(NOISE, like),
        step_at(1, count=4).normal(NOISE, like),
        step_at(0, count=4).normal(OTHER, like),
        step_at(0, count=4).normal(NOISE, like, "layer"),
    ]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 4


def test_draws_have_their_distributions() -> None:
    step, like = step_at(count=400), torch.empty(400, 50)
    assert kstest(step.normal(NOISE, like).flatten().numpy(), "norm").pvalue > 1e-3
    assert kstest(step.uniform(NOISE, like).flatten().numpy(), "uniform").pvalue > 1e-3


def test_a_first_dimension_that_is_no_batch_draws_for_the_micro_batch() -> None:
    like = torch.empty(6, 2)
    draws = [step_at(micro=m, rank=r, count=4).normal(NOISE, like) for m in (0, 1) for r in (0, 1)]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 4


def test_generators_of_the_step_and_of_the_micro_batch() -> None:
    def first(name: str, **places: Any) -> float:
        return torch.rand((), generator=getattr(step_at(**places), name)(NOISE)).item()

    assert first("generator", micro=1, rank=1) == first("generator")
    assert first("generator", index=1) != first("generator")
    assert len({first("micro_generator", micro=m, rank=r) for m in (0, 1) for r in (0, 1)}) == 4


def test_an_empty_batch_draws_nothing() -> None:
    assert step_at().normal(NOISE, torch.empty(0, 3)).shape == (0, 3)


def test_progress() -> None:
    assert step_at(5, total=10).progress == 0.5
    assert step_at(15, total=10).progress == 1.0
    assert step_at(5).progress == 0.0
    assert step_at(5, total=math.inf).progress == 0.0


def test_values_are_recorded_on_logged_steps_only() -> None:
    step = step_at()
    step.record("a", 1.0)
    assert step.records == {}
    step.logged = True
    step.record("a", 1.0)
    assert step.records == {"a": 1.0}
    step.again = True
    step.record("b", 1.0)
    assert "b" not in step.records
