"""Keyed randomness: known values, independence, and no state carried."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from framework.ops.keyed import Kind, Stream, key_of, mix


def test_mix_is_splitmix64() -> None:
    """Steele et al.'s generator from state 0 gives these first two numbers; one step adds the golden gamma."""
    assert mix(0, 0) == 0xE220A8397B1DCDAF
    assert mix(0x9E3779B97F4A7C15, 0) == 0x6E789E6AA1B965F4


def test_mix_takes_numbers_of_any_size_and_order_matters() -> None:
    assert mix(1, 2**80 + 3) == mix(1, (2**80 + 3) % 2**64)
    assert 0 <= mix(2**64 - 1, 2**63) < 2**64
    stream = Stream(0, "a")
    assert stream.key(1, 2) != stream.key(2, 1)
    assert stream.key(1) != stream.key(1, 0)


def test_seed_and_name_make_the_key() -> None:
    keys = {key_of(seed, who) for seed in range(20) for who in ("a", "b", "1", "")}
    assert len(keys) == 80
    assert key_of(1, "2") != key_of(12, "")


def test_draws_depend_on_the_place_alone() -> None:
    one, other = Stream(3, "noise"), Stream(3, "noise")
    for place in range(5):
        torch.randn(7, generator=one.torch(place))
    assert torch.equal(torch.randn(9, generator=one.torch(2)), torch.randn(9, generator=other.torch(2)))
    assert np.array_equal(one.numpy(4, 1).normal(size=5), other.numpy(4, 1).normal(size=5))
    assert not np.array_equal(one.numpy(4, 1).normal(size=5), one.numpy(1, 4).normal(size=5))


def test_global_generators_stay_untouched() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - that state is the point
    stream = Stream(0, "a")
    torch.randn(4, generator=stream.torch(1))
    stream.numpy(1).normal()
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_first_draws_of_neighbouring_places_look_uniform() -> None:
    stream = Stream(0, "a")
    first = [torch.rand(1, generator=stream.torch(step)).item() for step in range(2000)]
    assert kstest(first, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.08


def test_pickled_stream_continues_alike() -> None:
    stream = Stream(5, "loader")
    stream.torch(1)
    copy = pickle.loads(pickle.dumps(stream))
    assert copy.key(2, 3) == stream.key(2, 3)
    assert torch.equal(torch.rand(3, generator=copy.torch(1)), torch.rand(3, generator=stream.torch(1)))


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("room", [1, 100, 4097, 30_000, 40_000, 200_000])
def test_draws_of_a_step_depend_on_step_and_room_alone(kind: Kind, room: int) -> None:
    one, size = Stream(3, "noise"), min(room, 50)
    in_order = [one.of_step(step, room=room, start=room - size, size=size, kind=kind).clone() for step in range(40)]
    for step in (39, 0, 17, 16, 5):
        fresh = Stream(3, "noise")
        fresh.of_step(2, room=room + 1, start=0, size=1, kind=kind)
        fresh.of_step(step, room=room, start=0, size=1, kind="normal" if kind == "uniform" else "uniform")
        whole = fresh.of_step(step, room=room, start=0, size=room, kind=kind)
        assert torch.equal(whole[room - size :], in_order[step])
    assert len({tuple(draws.tolist()) for draws in in_order}) == 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_draws_of_a_step_have_the_type_asked_for(dtype: torch.dtype) -> None:
    draws = Stream(3, "noise").of_step(1, room=10, start=0, size=10, kind="uniform", dtype=dtype)
    assert draws.dtype == dtype


def test_steps_of_other_sizes_share_no_draws() -> None:
    # the last step of an epoch is often smaller, and lies between others of the same block
    def drawn(room: int, step: int) -> torch.Tensor:
        return Stream(3, "noise").of_step(step, room=room, start=0, size=299)

    draws = torch.stack([drawn(room, step) for step in range(16) for room in (300, 299)])
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 5 / 299**0.5


def test_draws_of_successive_steps_are_independent_and_normal() -> None:
    stream = Stream(0, "a")
    over_steps = torch.stack([stream.of_step(step, room=700, start=0, size=700) for step in range(2000)]).numpy()
    pvalues = [kstest(over_steps[:, place], "norm").pvalue for place in range(0, 700, 10)]
    assert kstest(pvalues, "uniform").pvalue > 1e-3
    for values in (over_steps, over_steps**2 - 1):
        for lag in (1, 2, 15, 16, 17):
            deviation = values.std() ** 2 / values[lag:].size ** 0.5
            assert abs((values[lag:] * values[:-lag]).mean()) < 4.5 * deviation


def test_draws_of_a_step_can_be_asked_for_first_while_evaluating() -> None:
    stream, weight = Stream(0, "a"), torch.ones(4, requires_grad=True)
    with torch.inference_mode():
        stream.of_step(0, room=4, start=0, size=4)
    (weight * stream.of_step(1, room=4, start=0, size=4)).sum().backward()
    assert weight.grad is not None
