"""Lengths of units are those of torch's own functions, for every kind of layer, through a whole run."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework import Data, Recipe, UserError, fit
from framework.ops.units import Units, units_of
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from plugins.norm_constraint import NormConstraint, constrain
from plugins.optimizer import Optimizer
from plugins.weight_average import WeightAverage

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(48) % 3


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def trained(*plugins: Any, model: nn.Module | None = None, **trainer: Any) -> nn.Module:
    model = network() if model is None else model
    data = Data((X, Y), (X, Y), batch_size=trainer.pop("batch_size", 12))
    options = {"max_epochs": 2, "enable_progress_bar": False, **trainer}
    recipe = Recipe(model, data, F.cross_entropy, plugins=[Optimizer("SGD", lr=0.5), *plugins], trainer=options)
    return fit(recipe, seed=3, logs=None).core.model


def updated(plugin: NormConstraint, model: nn.Module) -> NormConstraint:
    plugin.attach(types.SimpleNamespace(model=model))  # type: ignore[arg-type]
    with torch.no_grad():
        plugin.after_update(Step(0, WeightEdits()))
    return plugin


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(2)) * 3


# ---- the mathematics -------------------------------------------------------------------------------------------------


def test_lengths_by_hand() -> None:
    rows = [[3.0, 4.0], [0.75, 1.0], [0.0, 0.0]]
    one, other = torch.tensor(rows), torch.tensor(rows)
    constrain([one], 2.5)
    constrain([other], 2.5, "unit")
    torch.testing.assert_close(one, torch.tensor([[1.5, 2.0], [0.75, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(other, torch.tensor([[1.5, 2.0], [1.5, 2.0], [0.0, 0.0]]))
    assert torch.equal(one[1], torch.tensor(rows[1]))  # bit for bit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_it_is_torchs_renorm_and_normalize(dtype: torch.dtype) -> None:
    w = normal(5, 4, 3, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    for kind in ("max", "unit"):
        ours = w.clone()
        constrain([ours], 9.0, kind)
        wide = w if dtype.is_complex or dtype == torch.float64 else w.float()
        lengths = wide.abs().pow(2).sum((1, 2), keepdim=True).sqrt()
        expected = wide * (9.0 / lengths).clamp_max(1.0 if kind == "max" else torch.inf)
        torch.testing.assert_close(ours, expected.to(dtype))
        assert bool((lengths > 9).any()) and bool((lengths < 9).any())
    if not dtype.is_complex and dtype.itemsize > 2:
        torch.testing.assert_close(torch.renorm(w, 2, 0, 9.0), w * (9.0 / lengths).clamp_max(1.0))


def test_half_precision_does_not_overflow_and_small_lengths_neither() -> None:
    large, small = torch.full((1, 400), 300.0, dtype=torch.float16), torch.full((1, 4), 1e-38)
    subnormal = torch.full((1, 4), 1e-42)
    constrain([large, small, subnormal], 8.0, "unit")
    torch.testing.assert_close(large, torch.full((1, 400), 0.4, dtype=torch.float16))
    assert large.isfinite().all() and small.isfinite().all() and subnormal.isfinite().all()


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(4, 6), nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3), nn.ConvTranspose1d(4, 6, 3, groups=2)],
    ids=str,
)
def test_a_unit_is_what_feeds_one_output(layer: nn.Module) -> None:
    """The response to inputs shows which entries feed an output, however the layer stores them."""
    layer.weight.data = normal(*layer.weight.shape)
    before = layer.weight.detach().clone()
    constrain([layer.weight], 5.0, "unit", [units_of(layer)])
    x = torch.randn(1, 4, *[5] * (layer.weight.ndim - 2))
    for unit in range(6):
        (feeds,) = torch.autograd.grad(layer(x)[:, unit].sum(), layer.weight)
        entries = feeds != 0
        assert layer.weight[entries].norm().item() == pytest.approx(5.0, rel=1e-5)
        ratio = (layer.weight / before)[entries]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


# ---- in a run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["max", "unit"])
def test_a_fit_equals_a_loop_by_hand(kind: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = Data((X, Y), batch_size=12).train_loader(seed=3)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for window in loader:
            x, y = window.batches[0]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            for layer in (model[0], model[2]):
                w = layer.weight.data
                layer.weight.data = torch.renorm(w, 2, 0, 0.7) if kind == "max" else 0.7 * F.normalize(w)
    ours = trained(NormConstraint(0.7, kind))
    torch.testing.assert_close(ours.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours[0].weight, trained()[0].weight, atol=1e-2)


def test_a_limit_that_no_unit_reaches_is_absent_bit_for_bit() -> None:
    ours, bare = trained(NormConstraint(1e6)), trained()
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), bare.parameters(), strict=True))


def test_micro_batches_equal_one_batch() -> None:
    one, three = trained(NormConstraint(0.7)), trained(NormConstraint(0.7), batch_size=4, accumulate_grad_batches=3)
    torch.testing.assert_close(three.state_dict(), one.state_dict(), rtol=0, atol=1e-6)


def test_chosen_weights_alone_are_scaled_and_frozen_ones_once_they_are_thawed() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[2].weight.requires_grad_(False)
    plugin = updated(NormConstraint(0.1, weights="[02]"), model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight"}
    model[2].weight.requires_grad_()
    plugin.after_update(Step(0, WeightEdits()))
    torch.testing.assert_close(model[2].weight.norm(dim=1), torch.full((3,), 0.1))
    model.requires_grad_(False)
    plugin.after_update(Step(0, WeightEdits()))


def test_of_an_embedding_tokens_are_scaled_but_padding() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=2), nn.Linear(3, 5, bias=False))
    model[0].weight.data = normal(5, 3)
    before = model[0].weight.detach().clone()
    updated(NormConstraint(0.5, "unit", weights="Embedding"), model)
    lengths = model[0].weight.norm(dim=1)
    torch.testing.assert_close(lengths[[0, 1, 3, 4]], torch.full((4,), 0.5))
    assert torch.equal(model[0].weight[2], before[2])
    tied = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    tied[1].weight = tied[0].weight
    updated(NormConstraint(0.5, "unit"), tied)
    torch.testing.assert_close(tied[1].weight.norm(dim=1), torch.full((5,), 0.5))


def test_the_average_is_of_scaled_weights() -> None:
    model = trained(NormConstraint(0.7), WeightAverage("ema", decay=0.9))
    assert bool((model[0].weight.norm(dim=1) < 0.7 + 1e-5).all())
    with pytest.raises(UserError, match="'norm_constraint' must stand before 'weight_average'"):
        trained(WeightAverage("ema"), NormConstraint(0.7))


# ---- what is told ----------------------------------------------------------------------------------------------------


def told(plugin: NormConstraint, model: nn.Module) -> list[str]:
    plugin.attach(types.SimpleNamespace(model=model))  # type: ignore[arg-type]
    return [str(finding) for finding in plugin.lint(types.SimpleNamespace(core=types.SimpleNamespace(model=model)))]  # type: ignore[arg-type]


def test_weights_whose_length_means_nothing_are_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    norm, gain = told(NormConstraint(1.0), model)
    what = "norm_constraint: a norm layer right after them undoes the scaling of 0.weight"
    assert norm == f"{what}; choose other weights by weights="
    assert "weight normalization undoes the scaling of 2.parametrizations.weight.original1" in gain
    assert told(NormConstraint(1.0, weights="2.*"), model) == [gain]
    assert told(NormConstraint(1.0), network()) == []


def test_wrong_settings_and_patterns_are_told() -> None:
    for settings in ({"limit": 0.0}, {"limit": -1.0}, {"limit": 1.0, "kind": "min"}):
        with pytest.raises(UserError, match=r"^NormConstraint\("):
            NormConstraint(**settings)
    message = (
        r"^NormConstraint\(limit=1.0, weights='Linaer'\): pattern 'Linaer' matches no weight .*: 0.weight, 2.weight$"
    )
    with pytest.raises(UserError, match=message):
        trained(NormConstraint(1.0, weights="Linaer"))


def test_units_default_to_the_first_dimension() -> None:
    one, other = normal(4, 3), normal(4, 3)
    constrain([one], 1.0)
    constrain([other], 1.0, "max", [Units()])
    assert torch.equal(one, other)
