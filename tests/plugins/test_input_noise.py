from __future__ import annotations

import copy
import math
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from framework import Core, Data, Outcome, Recipe, UserError, fit
from framework.ops.keyed import Stream
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from plugins.input_noise import InputNoise

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.linspace(-1, 1, 8)).unsqueeze(1)


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def train(plugins=(), x=X, y=Y, batch_size=16, epochs=2, **trainer):
    data = Data((x, y), (x, y), batch_size=batch_size)
    recipe = Recipe(make_model(), data, functional.mse_loss, plugins=list(plugins))
    options = {"max_epochs": epochs, "enable_progress_bar": False, "logger": False, **trainer}
    return fit(recipe, seed=3, trainer=options, logs=None)


def weights_of(run) -> torch.Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def step_of(count: int, index: int = 0) -> Step:
    step = Step(3, WeightEdits())
    step.index, step.count, step.samples = index, count, count
    return step


def by_hand(formula, rate=0.0) -> torch.Tensor:
    """Train as ``train`` does, the noise drawn here from the documented keys."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    loader = Data((X, Y), batch_size=16).train_loader(seed=3)
    stream, index = Stream(3, "input_noise/"), 0
    for epoch in range(2):
        loader.set_epoch(epoch)
        for window in loader:
            x, y = window.batches[0]
            kind = "uniform" if rate else "normal"
            x = formula(x, stream.of_step(index, room=128, start=0, size=128, kind=kind).view(16, 8))
            optimizer.zero_grad()
            functional.mse_loss(model(x), y).backward()
            optimizer.step()
            index += 1
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize(
    ("plugin", "formula"),
    [
        (InputNoise(0.3), lambda x, e: x + 0.3 * e),
        (InputNoise(0.3, kind="multiplicative"), lambda x, e: x * (1 + 0.3 * e)),
        (InputNoise(kind="masking", rate=0.25), lambda x, u: x * (u >= 0.25)),
    ],
)
def test_a_fit_equals_a_loop_by_hand(plugin, formula):
    expected = by_hand(formula, plugin.rate or 0.0)
    torch.testing.assert_close(weights_of(train([plugin])), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, weights_of(train()), atol=1e-4)


@pytest.mark.parametrize("plugin", [InputNoise(0.3), InputNoise(kind="masking", rate=0.25)])
def test_micro_batches_equal_one_batch(plugin):
    one = weights_of(train([copy.deepcopy(plugin)], batch_size=64))
    four = weights_of(train([plugin], batch_size=16, accumulate_grad_batches=4))
    torch.testing.assert_close(four, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "plugin", [InputNoise(0.0), InputNoise(0.0, kind="multiplicative"), InputNoise(kind="masking", rate=0.0)]
)
def test_strength_zero_is_absent_bit_for_bit(plugin):
    assert torch.equal(weights_of(train([plugin])), weights_of(train()))


def test_evaluation_sees_the_clean_inputs():
    run = train([InputNoise(5.0)])
    clean = functional.mse_loss(run.core.model(X), Y).item()
    assert run.metrics["val/loss"] == pytest.approx(clean, abs=1e-6)


def test_noise_is_fresh_in_each_step_and_leaves_the_data_alone():
    batch = (torch.zeros(16, 8), torch.ones(16))
    plugin = InputNoise(1.0)
    first = plugin.transform_batch(batch, step_of(16, 0))
    second = plugin.transform_batch(batch, step_of(16, 1))
    assert not batch[0].any()
    assert first[1] is batch[1]
    both = torch.stack([first[0].flatten(), second[0].flatten()])
    assert abs(torch.corrcoef(both)[0, 1]) < 4 / math.sqrt(128)


def test_mappings_keep_their_other_entries():
    batch = {"input": torch.zeros(4, 3), "target": torch.ones(4), "weight": torch.ones(4)}
    noisy = InputNoise(1.0).transform_batch(batch, step_of(4))
    assert noisy["input"].all()
    assert noisy["weight"] is batch["weight"]
    assert not batch["input"].any()


def test_half_precision_inputs_stay_in_half_precision():
    noisy = InputNoise(0.1).transform_batch((torch.zeros(4, 3, dtype=torch.bfloat16), None), step_of(4))
    assert noisy[0].dtype == torch.bfloat16


@pytest.mark.parametrize("x", [torch.zeros(64, 8, dtype=torch.int64), torch.zeros(64, 8, dtype=torch.uint8)])
def test_whole_numbers_are_refused(x):
    with pytest.raises(UserError, match=rf"^InputNoise\(std=0.2\): .*received {x.dtype}.*HiddenNoise at the embedding"):
        train([InputNoise(0.2)], x=x, num_sanity_val_steps=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"std": -0.1},
        {"std": math.nan},
        {"std": "0.1"},
        {"kind": "gausian"},
        {"kind": "masking"},
        {"kind": "masking", "rate": 1.0},
        {"kind": "masking", "rate": -0.1},
        {"rate": 0.3},
    ],
)
def test_wrong_settings_are_reported_in_one_line(arguments):
    with pytest.raises(UserError, match=r"^InputNoise\(.*") as caught:
        InputNoise(**arguments)
    assert "\n" not in str(caught.value)


def test_a_strength_may_be_moved_during_the_run():
    plugin = InputNoise(0.0)
    batch = (torch.zeros(4, 3), None)
    assert plugin.transform_batch(batch, step_of(4)) is batch
    plugin.std = 0.5
    half = plugin.transform_batch(batch, step_of(4))[0]
    plugin.std = 1.0
    torch.testing.assert_close(plugin.transform_batch(batch, step_of(4))[0], 2 * half)


def test_on_linear_regression_it_is_ridge_with_alpha_sigma_squared():
    # least squares on inputs with noise tends to (X'X/n + sigma^2 I)^-1 X'y/n; Bishop (1995)
    std, copies = 0.8, 4000
    y = Y + 0.1 * torch.randn(64, 1, generator=torch.Generator().manual_seed(5))
    x64, y64 = X.double(), y.double()
    ridge = torch.linalg.solve(x64.T @ x64 / 64 + std**2 * torch.eye(8), x64.T @ y64 / 64)
    batch = (X.repeat(copies, 1), y.repeat(copies, 1))
    noisy = InputNoise(std).transform_batch(batch, step_of(64 * copies))[0].double()
    solution = torch.linalg.lstsq(noisy, batch[1].double()).solution
    plain = torch.linalg.lstsq(x64, y64).solution
    assert (solution - ridge).abs().max() < 0.01
    assert (plain - ridge).abs().max() > 0.2


class Sample(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor


class Samples(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return Sample(torch.ones(4) * index, torch.zeros(1))


class ByName(Core):
    def compute_loss(self, batch):
        return Outcome(functional.mse_loss(self(batch.image), batch.label))


def test_batches_of_named_tuples_are_read_by_name_after_it():
    recipe = Recipe(nn.Linear(4, 1), Data(Samples(), batch_size=4), core=ByName, plugins=[InputNoise(0.1)])
    run = fit(recipe, trainer={"max_epochs": 1, "enable_progress_bar": False, "logger": False}, logs=None)
    assert run.last["train/loss"] > 0


def test_several_inputs_get_noise_of_their_own():
    a, b = torch.zeros(8, 3), torch.zeros(8, 3)
    step = Step(0, WeightEdits())
    step.count = step.samples = 8
    plugin = InputNoise(0.5)
    (first, named), target = plugin.transform_batch(((a, {"b": b}), 7), step)
    assert target == 7
    assert first.any() and named["b"].any()
    assert not torch.equal(first, named["b"])
    with pytest.raises(UserError, match=r"received torch\.int64.*override transform_batch"):
        plugin.transform_batch(((a, torch.zeros(8, dtype=torch.long)), 7), step)
