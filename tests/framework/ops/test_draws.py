from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from framework.errors import UserError
from framework.ops.draws import Draws, check_rate, disturbed
from framework.plugin import Plugin, Step
from framework.plugin.edits import WeightEdits


class Noisy(Plugin):
    pass


def step_of(count: int, index: int = 0, seed: int = 0) -> Step:
    step = Step(seed, WeightEdits())
    step.index, step.count, step.samples = index, count, count
    return step


def test_two_draws_of_one_transform_are_independent():
    draws = Draws(step_of(500), Noisy())
    x = torch.empty(500, 1)
    a, b = draws.uniform(x, 1)[:, 0], draws.uniform(x, 1)[:, 0]
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / math.sqrt(500)


@pytest.mark.parametrize(
    ("kind", "std", "rate"), [("gaussian", 0.0, None), ("multiplicative", 0.0, None), ("masking", 0.1, 0.0)]
)
def test_strength_zero_gives_the_tensor_itself_and_draws_nothing(kind, std, rate):
    step, x = step_of(4), torch.randn(4, 3)
    assert disturbed(x, kind, std, rate, plugin=Noisy(), step=step) is x
    assert not step._streams


def test_kinds_in_mean_and_variance():
    x = torch.full((1000, 200), 2.0)
    step = step_of(1000)
    gaussian = disturbed(x, "gaussian", 0.3, None, plugin=Noisy(), step=step)
    relative = disturbed(x, "multiplicative", 0.3, None, plugin=Noisy(), step=step)
    kept = disturbed(x, "masking", 0.3, 0.25, plugin=Noisy(), step=step, rescale=True)
    assert stats.kstest(((gaussian - 2) / 0.3).flatten().numpy(), "norm").pvalue > 0.01
    assert stats.kstest(((relative - 2) / 0.6).flatten().numpy(), "norm").pvalue > 0.01
    assert abs((kept == 0).double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / x.numel())
    assert kept.unique().tolist() == pytest.approx([0.0, 2 / 0.75])


def test_masking_in_half_precision_keeps_its_rate_and_its_mask():
    # of draws rounded to bfloat16, 0.2 % more would fall below this rate
    x, rate = torch.ones(1000, 2000), 0.0020
    wide = disturbed(x, "masking", 0.1, rate, plugin=Noisy(), step=step_of(1000))
    half = disturbed(x.bfloat16(), "masking", 0.1, rate, plugin=Noisy(), step=step_of(1000))
    assert half.dtype == torch.bfloat16
    assert torch.equal(wide == 0, half == 0)
    assert abs((half == 0).double().mean() - rate) < 4 * math.sqrt(rate / x.numel())


def test_draws_are_keyed_by_seed_plugin_step_and_who():
    x = torch.zeros(4, 50)

    def draw(seed=0, index=0, name="noisy", who=""):
        return disturbed(x, "gaussian", 1.0, None, plugin=Noisy(name=name), step=step_of(4, index, seed), who=who)

    assert torch.equal(draw(), draw())
    others = [draw(seed=1), draw(index=1), draw(name="other"), draw(who="layer")]
    for i, one in enumerate([draw(), *others]):
        for other in others[i:]:
            correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
            assert abs(correlation) < 4 / math.sqrt(200)


def test_draws_belong_to_samples_whatever_the_micro_batches():
    x = torch.zeros(12, 5)
    whole = disturbed(x, "gaussian", 1.0, None, plugin=Noisy(), step=step_of(12))
    parts = []
    for start, count in ((0, 5), (5, 4), (9, 3)):
        step = step_of(count)
        step.start, step.samples = start, 12
        parts.append(disturbed(x[:count], "gaussian", 1.0, None, plugin=Noisy(), step=step))
    assert torch.equal(torch.cat(parts), whole)


def test_rate_and_kind_have_to_agree():
    check_rate("X", "masking", 0.0)
    check_rate("X", "gaussian", None)
    with pytest.raises(UserError, match=r"^X\(kind='masking', rate=None\): give rate="):
        check_rate("X", "masking", None)
    with pytest.raises(UserError, match=r"^X\(kind='gaussian', rate=0.5\): rate belongs to kind='masking'"):
        check_rate("X", "gaussian", 0.5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_normal_draws_need_a_floating_point_type(dtype):
    with pytest.raises(UserError, match=f"normal draws of noisy: needs floating-point numbers, received {dtype}"):
        Draws(step_of(4), Noisy()).normal(torch.ones(4, 2).to(dtype))
