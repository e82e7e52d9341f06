from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from framework.ops.keyed import Stream
from framework.ops.noise import additive, dropout_std, masked, multiplicative, normals


def keyed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("where", [(5,), (5, 1, 0)])
@pytest.mark.parametrize("room", [1000, 100_000])
def test_normals_of_a_place_do_not_depend_on_how_they_are_cut(where, room):
    whole = normals(Stream(1, "a"), *where, room=room, start=0, size=1000)
    lows = range(0, 1000, 300)
    cut = [normals(Stream(1, "a"), *where, room=room, start=low, size=min(300, 1000 - low)) for low in lows]
    assert torch.equal(torch.cat(cut), whole)
    assert not torch.equal(normals(Stream(1, "a"), 6, *where[1:], room=room, start=0, size=1000), whole)


def test_another_devices_normals_come_from_its_generator(monkeypatch):
    asked = []

    def randn(size, *, generator, device):
        asked.append((generator.initial_seed(), device))
        return torch.zeros(size)

    monkeypatch.setattr(torch, "randn", randn)
    monkeypatch.setattr(Stream, "torch", lambda self, *where, device: keyed(self.key(*where) >> 1))
    for start in (0, 0, 8):
        assert normals(Stream(1, "a"), 5, room=200, start=start, size=100, device="cuda").shape == (100,)
    assert asked[0] == asked[1] != asked[2]


def test_formulas_by_hand():
    x, noise = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 1.0, 3.0])
    torch.testing.assert_close(additive(x, 0.1, noise), torch.tensor([1.05, -1.9, 0.3]))
    torch.testing.assert_close(multiplicative(x, 0.1, noise), torch.tensor([1.05, -2.2, 0.0]))
    uniform = torch.tensor([0.1, 0.25, 0.9])
    assert masked(x, 0.25, uniform).tolist() == [0.0, -2.0, 0.0]
    assert masked(x, 0.25, uniform, rescale=True).tolist() == pytest.approx([0.0, -2 / 0.75, 0.0])


def test_formulas_change_no_argument():
    x, noise = torch.ones(4), torch.full((4,), 0.3)
    for changed in (additive(x, 0.1, noise), multiplicative(x, 0.1, noise), masked(x, 0.5, noise)):
        assert changed.data_ptr() not in (x.data_ptr(), noise.data_ptr())
    assert torch.equal(x, torch.ones(4))
    assert torch.equal(noise, torch.full((4,), 0.3))


@pytest.mark.parametrize(
    "formula",
    [
        lambda x, noise: additive(x, 0.3, noise),
        lambda x, noise: multiplicative(x, 0.3, noise),
        lambda x, noise: masked(x, 0.3, noise.abs().clamp(max=0.99), rescale=True),
    ],
)
def test_gradients(formula):
    x = torch.randn(3, 4, dtype=torch.float64, generator=keyed(1), requires_grad=True)
    noise = torch.randn(3, 4, dtype=torch.float64, generator=keyed(2))
    assert torch.autograd.gradcheck(lambda x: formula(x, noise), x)


def test_masking_stops_infinities_and_their_gradients():
    x = torch.tensor([math.inf, 1.0], requires_grad=True)
    out = masked(x, 0.5, torch.tensor([0.1, 0.9]))
    out.sum().backward()
    assert out.tolist() == [0.0, 1.0]
    assert x.grad.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_multiplicative_noise_of_dropout_std_is_dropout_in_mean_and_variance(rate):
    n = 200_000
    ones = torch.ones(n)
    torch.manual_seed(0)
    dropout = functional.dropout(ones, rate)
    noisy = multiplicative(ones, dropout_std(rate), normals(Stream(3, "a"), 0, room=n, start=0, size=n))
    std = dropout_std(rate)
    error = std * math.sqrt(2 / n)
    assert abs(noisy.mean() - dropout.mean()) < 4 * error
    # the variance of a sample variance: (kurtosis - 1) sigma^4 / n, where a Bernoulli variable's kurtosis depends on p
    kurtosis = 3 + (1 - 6 * rate * (1 - rate)) / (rate * (1 - rate))
    assert abs(noisy.var() - dropout.var()) < 4 * std**2 * math.sqrt((kurtosis - 1 + 2) / n)
