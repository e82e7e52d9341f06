from __future__ import annotations

import math
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from framework.data import Data
from framework.data.outcome import Outcome
from framework.engine.core import Core
from framework.errors import UserError
from framework.ops.norms import add_group_gradient, group_norm, norm
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer

EVERY_TERM = [
    {},
    {"p": 1},
    {"p": 1.5},
    {"p": 3},
    {"l1_ratio": 0.3},
    {"groups": "rows"},
    {"groups": "columns"},
    {"around": "start"},
    {"p": 1, "around": "start"},
    {"groups": "rows", "around": "start"},
]


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 4)).to(dtype)


def attached(plugin: NormPenalty, model: nn.Module) -> NormPenalty:
    plugin.attach(types.SimpleNamespace(model=model))
    return plugin


def step() -> Step:
    return Step(0, WeightEdits())


def set_gradients(model: nn.Module, value: float = 0.5) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


# ---- the mathematics -------------------------------------------------------------------------------------------------


def test_norms_by_hand() -> None:
    weights = [torch.tensor([[3.0, -4.0]]), torch.tensor([[0.0, 2.0], [1.0, 2.0]])]
    assert norm(weights, 1).item() == pytest.approx(12)
    assert norm(weights, 2).item() == pytest.approx((9 + 16 + 4 + 1 + 4) / 2)
    assert norm(weights, 3).item() == pytest.approx((27 + 64 + 8 + 1 + 8) / 3)
    # rows of 2 entries: lengths 5, 2, sqrt 5; columns: 3, 4 (one entry each), then 1 and sqrt 8 (two entries each)
    assert group_norm(weights, "rows").item() == pytest.approx(math.sqrt(2) * (5 + 2 + math.sqrt(5)))
    assert group_norm(weights, "columns").item() == pytest.approx(3 + 4 + math.sqrt(2) * (1 + math.sqrt(8)))


def test_the_group_gradient_is_zero_at_zero() -> None:
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    gradient = torch.zeros_like(w)
    add_group_gradient([gradient], [w], 1.0, "rows")
    assert torch.allclose(gradient, torch.tensor([[0.6, 0.8], [0.0, 0.0]]) * math.sqrt(2))
    add_group_gradient([gradient], [torch.zeros_like(w)], 1.0, "columns")
    assert gradient.isfinite().all()


# ---- gradient and value agree ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", EVERY_TERM)
def test_the_gradient_is_that_of_the_value(settings: dict[str, object]) -> None:
    model = network()
    plugin = attached(NormPenalty(0.3, **settings), model)
    move(model)
    wanted = torch.autograd.grad(plugin.weight_penalty(step()), [model[0].weight, model[3].weight])
    set_gradients(model)
    plugin.weight_penalty_gradient(step())
    for weight, gradient in zip((model[0].weight, model[3].weight), wanted, strict=True):
        assert torch.allclose(weight.grad, gradient + 0.5, rtol=1e-12, atol=1e-12)
    for free in (model[0].bias, model[2].weight, model[2].bias, model[3].bias):
        assert (free.grad == 0.5).all()


@pytest.mark.parametrize("settings", [{"p": 1}, {"p": 1.5}, {"l1_ratio": 0.3}, {"groups": "rows"}])
def test_at_zero_the_gradient_is_zero(settings: dict[str, object]) -> None:
    model = network()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    plugin = attached(NormPenalty(0.3, **settings), model)
    set_gradients(model, 0.0)
    plugin.weight_penalty_gradient(step())
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


@pytest.mark.parametrize("settings", EVERY_TERM)
def test_strength_zero_is_absence(settings: dict[str, object]) -> None:
    model = network()
    plugin = attached(NormPenalty({"0": 0.0, "3": 0.3}, scale=0.0, **settings), model)
    model[0].weight.grad = None
    plugin.weight_penalty_gradient(step())
    assert model[0].weight.grad is None
    assert model[3].weight.grad is None


def test_half_precision_is_valued_in_single() -> None:
    model = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
    plugin = attached(NormPenalty(1.0), model)
    assert plugin.weight_penalty(step()).item() == pytest.approx(norm([model.weight.float()], 2).item(), rel=1e-6)


def test_biases_are_penalized_on_request() -> None:
    model = network()
    plugin = attached(NormPenalty(1.0, biases=True), model)
    set_gradients(model, 0.0)
    plugin.weight_penalty_gradient(step())
    assert torch.equal(model[3].bias.grad, model[3].bias)
    assert (model[2].weight.grad == 1).all()


def test_tied_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    plugin = attached(NormPenalty(1.0), model)
    set_gradients(model, 0.0)
    plugin.weight_penalty_gradient(step())
    assert torch.equal(model[0].weight.grad, model[0].weight)
    assert plugin.weight_penalty(step()).item() == pytest.approx(model[0].weight.square().sum().item() / 2)


def test_an_unused_weight_gets_the_gradient_and_a_frozen_one_none() -> None:
    model = network()
    plugin = attached(NormPenalty(0.1), model)
    model[3].weight.requires_grad_(False)
    plugin.weight_penalty_gradient(step())
    assert torch.allclose(model[0].weight.grad, 0.1 * model[0].weight)
    assert model[3].weight.grad is None
    model[0].weight.requires_grad_(False)
    model[0].weight.grad = None
    plugin.weight_penalty_gradient(step())
    assert model[0].weight.grad is None


# ---- strengths by pattern --------------------------------------------------------------------------------------------


def test_the_first_pattern_holds_and_the_rest_goes_free() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    plugin = attached(NormPenalty({"a": 0.1, "[ab].*": 0.2}), model)
    set_gradients(model, 0.0)
    plugin.weight_penalty_gradient(step())
    assert torch.allclose(model["a"].weight.grad, 0.1 * model["a"].weight)
    assert torch.allclose(model["b"].weight.grad, 0.2 * model["b"].weight)
    assert (model["c"].weight.grad == 0).all()
    wanted = 0.1 * norm([model["a"].weight], 2) + 0.2 * norm([model["b"].weight], 2)
    assert torch.allclose(plugin.weight_penalty(step()), wanted)


def test_scale_moves_every_strength() -> None:
    model = network()
    plugin = attached(NormPenalty({"0": 0.1, "3": 0.2}), model)
    whole = plugin.weight_penalty(step())
    plugin.scale = 0.25
    assert torch.allclose(plugin.weight_penalty(step()), 0.25 * whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormPenalty(-1e-4), r"alpha=-0.0001.*>= 0"),
        (lambda: NormPenalty(math.nan), "alpha=nan"),
        (lambda: NormPenalty({"*": -1.0}), "every value is a number >= 0"),
        (lambda: NormPenalty({}), "names no weights"),
        (lambda: NormPenalty(1.0, p=0.5), "p must be a number >= 1"),
        (lambda: NormPenalty(1.0, p=1, l1_ratio=0.5), "leave p out"),
        (lambda: NormPenalty(1.0, l1_ratio=1.5), "l1_ratio=1.5"),
        (lambda: NormPenalty(1.0, l1_ratio=0.5, groups="rows"), "two plugins"),
        (lambda: NormPenalty(1.0, groups="row"), "did you mean 'rows'"),
        (lambda: NormPenalty(1.0, groups="rows", biases=True), "no rows or columns"),
        (lambda: NormPenalty(1.0, p=3, proximal=True), "no closed form"),
        (lambda: attached(NormPenalty(1.0, weights="4"), network()), "'4' matches no weight"),
        (lambda: attached(NormPenalty({"0": 1.0, "lost": 1.0}), network()), "'lost' matches no weight"),
        (lambda: attached(NormPenalty({"*": 1.0, "0": 2.0}), network()), "'0' gets no weight"),
    ],
)
def test_mistakes_are_reported(make: Callable[[], NormPenalty], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


# ---- real fits -------------------------------------------------------------------------------------------------------


class Quadratic(Core):
    r"""J(w) = ½ Σ λᵢ (wᵢ - wᵢ*)², whatever the batch."""

    curvature = torch.tensor([[4.0, 1.0, 0.25, 0.01], [2.0, 0.5, 1.0, 8.0]], dtype=torch.float64)
    optimum = torch.tensor([[1.0, -2.0, 3.0, 0.5], [0.05, 0.1, -0.1, 0.02]], dtype=torch.float64)

    def compute_loss(self, batch: object) -> Outcome:
        return Outcome((self.curvature * (self.model.weight - self.optimum) ** 2).sum() / 2)


def fitted(train: Callable[..., object], *plugins: object, steps: int = 400, lr: float = 0.1) -> Tensor:
    model = nn.Linear(4, 2, bias=False, dtype=torch.float64)
    data = Data((torch.zeros(4, 1), torch.zeros(4)), batch_size=4)
    core = Quadratic(model, plugins=[*plugins, Optimizer("SGD", lr=lr)], data=data)
    train(core, max_epochs=steps)
    return model.weight.detach()


def test_l2_shrinks_each_eigendirection_of_a_quadratic(train: Callable[..., object]) -> None:
    found = fitted(train, NormPenalty(0.5))
    assert torch.allclose(found, Quadratic.optimum * Quadratic.curvature / (Quadratic.curvature + 0.5), atol=1e-8)


def test_l1_soft_thresholds_a_diagonal_quadratic(train: Callable[..., object]) -> None:
    found = fitted(train, NormPenalty(0.1, p=1, proximal=True), steps=1500)
    size = (Quadratic.optimum.abs() - 0.1 / Quadratic.curvature).clamp_min(0)
    wanted = Quadratic.optimum.sign() * size
    assert torch.equal(found == 0, wanted == 0)
    assert 0 < (wanted == 0).sum() < wanted.numel()
    assert torch.allclose(found, wanted, atol=1e-6)


def test_the_l1_gradient_alone_gives_no_exact_zeros(train: Callable[..., object]) -> None:
    assert (fitted(train, NormPenalty(0.1, p=1), steps=100) != 0).all()


def test_the_elastic_net_is_solved(train: Callable[..., object]) -> None:
    found = fitted(train, NormPenalty(0.1, l1_ratio=0.4, proximal=True), steps=1000)
    curvature, optimum = Quadratic.curvature, Quadratic.optimum
    size = (curvature * optimum.abs() - 0.1 * 0.4).clamp_min(0) / (curvature + 0.1 * 0.6)
    assert torch.allclose(found, optimum.sign() * size, atol=1e-7)


def test_group_lasso_kills_whole_groups(train: Callable[..., object]) -> None:
    found = fitted(train, NormPenalty(0.15, groups="rows", proximal=True))
    assert (found[1] == 0).all()
    assert (found[0] != 0).all()
    # the optimality condition of the row that lives: the gradient of J balances that of the term
    slope = Quadratic.curvature[0] * (found[0] - Quadratic.optimum[0])
    balance = 0.15 * 2 * found[0] / found[0].norm()
    assert torch.allclose(slope[:3], -balance[:3], atol=1e-5)


@pytest.mark.parametrize("proximal", [False, True])
def test_l2_sp_pulls_towards_the_start(train: Callable[..., object], proximal: bool) -> None:
    torch.manual_seed(3)
    start = nn.Linear(4, 2, bias=False, dtype=torch.float64).weight.detach().clone()
    torch.manual_seed(3)
    found = fitted(train, NormPenalty(0.5, around="start", proximal=proximal))
    curvature = Quadratic.curvature
    assert torch.allclose(found, (curvature * Quadratic.optimum + 0.5 * start) / (curvature + 0.5), atol=1e-8)


def test_proximal_l1_around_the_start_leaves_weights_exactly_there(train: Callable[..., object]) -> None:
    torch.manual_seed(3)
    start = nn.Linear(4, 2, bias=False, dtype=torch.float64).weight.detach().clone()
    torch.manual_seed(3)
    found = fitted(train, NormPenalty(0.3, p=1, around="start", proximal=True))
    unmoved = (Quadratic.curvature * (Quadratic.optimum - start)).abs() <= 0.3
    assert unmoved.any()
    assert not unmoved.all()
    assert torch.equal(found == start, unmoved)


def test_the_proximal_step_takes_the_rate_of_the_weights_group(
    core_of: Callable[..., Core], train: Callable[..., object]
) -> None:
    optimizer = {"cls": "SGD", "lr": 0.1, "groups": {"2": {"lr_scale": 3.0}}}
    plain = core_of(Optimizer(**optimizer))
    shrunk = core_of(NormPenalty(0.2, proximal=True), Optimizer(**optimizer))
    for core in (plain, shrunk):
        train(core, max_steps=1)
    for layer, rate in ((0, 0.1), (2, 0.3)):
        assert torch.allclose(shrunk.model[layer].weight, plain.model[layer].weight / (1 + rate * 0.2), rtol=1e-6)
        assert torch.equal(shrunk.model[layer].bias, plain.model[layer].bias)


def test_the_term_counts_once_under_accumulation(
    core_of: Callable[..., Core], train: Callable[..., object], weights: Callable[[Core], Tensor], data: Data
) -> None:
    def run(batch_size: int, accumulate: int) -> Tensor:
        split = Data(data.train, batch_size=batch_size)
        core = core_of(NormPenalty(0.3, l1_ratio=0.3), Optimizer("SGD", lr=0.1), data=split, accumulate=accumulate)
        train(core, max_epochs=2)
        return weights(core)

    assert torch.allclose(run(48, 1), run(12, 4), atol=2e-6)


def test_strength_zero_trains_to_the_same_bits(
    core_of: Callable[..., Core], train: Callable[..., object], weights: Callable[[Core], Tensor]
) -> None:
    cores = [core_of(), core_of(NormPenalty(0.0, p=1)), core_of(NormPenalty(0.0, groups="rows", proximal=True))]
    for core in cores:
        train(core, max_epochs=2)
    assert torch.equal(weights(cores[0]), weights(cores[1]))
    assert torch.equal(weights(cores[0]), weights(cores[2]))


def test_the_starting_point_survives_a_resume(
    core_of: Callable[..., Core], train: Callable[..., object], weights: Callable[[Core], Tensor], tmp_path: Path
) -> None:
    def core(model: nn.Module | None = None) -> Core:
        return core_of(NormPenalty(0.3, around="start"), Optimizer("SGD", lr=0.1), model=model)

    whole, first, second = core(), core(), core(nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)))
    train(whole, max_epochs=2)
    keep = ModelCheckpoint(tmp_path, filename="half", save_on_train_epoch_end=True)
    train(first, max_epochs=1, callbacks=[keep], enable_checkpointing=True)
    train(second, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(whole), weights(second))


def test_a_checkpoint_without_the_starting_point_is_reported() -> None:
    plugin = attached(NormPenalty(0.1, around="start"), network())
    with pytest.raises(UserError, match=r"no starting point of '0\.weight'"):
        plugin.load_state_dict({"start": {}})
    assert attached(NormPenalty(0.1), network()).state_dict() == {}
    assert NormPenalty(0.1, around="start").state_dict() == {}


def test_flat_weights_of_an_lstm_are_penalized() -> None:
    model = nn.LSTM(3, 4)
    plugin = attached(NormPenalty({"weight_hh_*": 1.0}, groups="rows"), model)
    set_gradients(model, 0.0)
    plugin.weight_penalty_gradient(step())
    assert torch.allclose(model.weight_hh_l0.grad.norm(dim=1), torch.full((16,), 2.0))
    assert (model.weight_ih_l0.grad == 0).all()


@pytest.mark.parametrize(
    "settings", [{}, {"p": 1}, {"p": 3}, {"l1_ratio": 0.3}, {"around": "start"}, {"groups": "rows"}], ids=str
)
@pytest.mark.parametrize("limit", [1, 40, 10**6])
def test_gradients_do_not_depend_on_what_fits_into_the_cache(settings, limit, monkeypatch):
    monkeypatch.setattr("framework.ops.weights._IN_CACHE", limit)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 8), nn.Linear(8, 1))
    plugin = NormPenalty({"0.*": 0.1, "*": 0.3}, **settings)
    core = Core(model, plugins=[plugin])
    core.attach_plugins()
    model[1].weight.requires_grad_(False)
    weights = [model[i].weight for i in (0, 2, 3)]
    with torch.no_grad():
        for weight in weights:
            weight.add_(torch.randn_like(weight))
    model[3].weight.grad = torch.ones_like(model[3].weight)
    plugin.weight_penalty_gradient(core.at)
    parts = [(0.1, weights[:1]), (0.3, weights[1:])]
    starts = {name: start for part in plugin.parts_ for name, start in zip(part.names, part.start, strict=False)}
    expected = []
    for alpha, chosen in parts:
        for weight in chosen:
            (name,) = [name for name, p in model.named_parameters() if p is weight]
            offset = (weight.detach() - starts.get(name, 0.0)).requires_grad_()
            if "l1_ratio" in settings:
                term = 0.3 * offset.abs().sum() + 0.7 * offset.square().sum() / 2
            elif "groups" in settings:
                term = offset.shape[1] ** 0.5 * offset.norm(dim=1).sum()
            else:
                p = settings.get("p", 2)
                term = offset.abs().pow(p).sum() / p
            expected.append(alpha * torch.autograd.grad(term, offset)[0])
    expected[-1] += 1
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)
    assert model[1].weight.grad is None
    sizes = [sum(weight.numel() for weight in piece.weights) for piece in plugin.pieces_]
    assert sum(sizes) == 12 + 40 + 8  # the frozen one is in no piece
    assert all(size <= limit or len(piece.weights) == 1 for size, piece in zip(sizes, plugin.pieces_, strict=True))


# ---- layers that are frozen and unfrozen during the run --------------------------------------------------------------


class Thaw(pl.Callback):
    """Freezes or unfreezes the first layer at an epoch, and keeps its weight from before."""

    def __init__(self, epoch: int, trains: bool) -> None:
        self.epoch, self.trains, self.kept = epoch, trains, torch.empty(0)

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.current_epoch == self.epoch:
            pl_module.model[0].requires_grad_(self.trains)
            self.kept = pl_module.model[0].weight.detach().clone()


@pytest.mark.parametrize(
    "settings",
    [{"p": 1, "proximal": True}, {"groups": "rows", "proximal": True}, {"around": "start", "proximal": True}, {}],
    ids=str,
)
def test_a_layer_frozen_during_the_run_gets_nothing(core_of, train, settings) -> None:
    core, freeze = core_of(NormPenalty(0.3, **settings), Optimizer("SGD", lr=0.1)), Thaw(1, False)
    train(core, max_epochs=3, callbacks=[freeze])
    assert torch.equal(core.model[0].weight, freeze.kept)
    other = 0.15 * core.model[2].weight.square().sum()
    if not settings:
        torch.testing.assert_close(core.plugins[0].weight_penalty(step()), other)


@pytest.mark.parametrize("proximal", [False, True])
def test_a_layer_unfrozen_during_the_run_is_penalized_from_then_on(core_of, train, proximal) -> None:
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    core = core_of(NormPenalty(0.3, proximal=proximal), Optimizer("SGD", lr=0.0), model=model)
    plugin = core.plugins[0]
    model[0].requires_grad_(False)
    core.attach_plugins()
    before = model[0].weight.detach().clone()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    now = Step(0, WeightEdits())
    now.optimizer = opt

    def update() -> None:
        set_gradients(model, 0.0)
        if not model[0].weight.requires_grad:
            model[0].weight.grad = None
        with torch.no_grad():
            plugin.weight_penalty_gradient(now)
            opt.step()
            plugin.after_update(now)

    update()
    assert torch.equal(model[0].weight, before)
    model[0].requires_grad_(True)
    update()
    wanted = before / 1.03 if proximal else before * 0.97
    torch.testing.assert_close(model[0].weight, wanted)


def test_the_starting_point_of_an_unfrozen_layer_is_its_value_then() -> None:
    model = network()
    model[0].requires_grad_(False)
    plugin = attached(NormPenalty(0.5, around="start"), model)
    assert list(plugin.state_dict()["start"]) == ["3.weight"]
    with torch.no_grad():
        model[0].weight.fill_(2.0)  # such as pretrained weights that are loaded later
    model[0].requires_grad_(True)
    set_gradients(model, 0.0)
    plugin.weight_penalty_gradient(step())
    assert not model[0].weight.grad.any()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    plugin.weight_penalty_gradient(step())
    assert (model[0].weight.grad == 0.5).all()
    other = attached(NormPenalty(0.5, around="start"), network())
    other.load_state_dict(plugin.state_dict())
    assert (other.start_["0.weight"] == 2.0).all()


def test_everything_frozen_has_a_term_of_zero() -> None:
    model = network()
    plugin = attached(NormPenalty(0.5), model)
    model.requires_grad_(False)
    plugin.weight_penalty_gradient(step())
    assert plugin.weight_penalty(step()) == 0


# ---- complex weights, mixed types, rows of every layer, padding ------------------------------------------------------


@pytest.mark.parametrize("settings", [s for s in EVERY_TERM if s.get("p") != 3], ids=str)
def test_complex_weights_get_the_gradient_of_autograd(settings) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4, dtype=torch.complex128), nn.Linear(4, 2, dtype=torch.float64))
    plugin = attached(NormPenalty(0.3, **settings), model)
    move(model)
    weights = [model[0].weight, model[1].weight]
    total = torch.stack([t.double() for t in [plugin._value(part) for part in plugin.parts_]]).sum() * 0.3
    expected = torch.autograd.grad(total, weights)
    set_gradients(model, 0.0)
    plugin.weight_penalty_gradient(step())
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


@pytest.mark.parametrize(("settings", "left"), [({"p": 1}, 0.9), ({"groups": "rows"}, 0.9), ({"p": 2}, 1 / 1.5)])
def test_a_proximal_step_shortens_complex_weights(settings, left) -> None:
    model = nn.Linear(1, 2, bias=False, dtype=torch.complex128)
    model.weight.data = torch.tensor([[3 + 4j], [0.1 - 0.2j]], dtype=torch.complex128)
    plugin = attached(NormPenalty(1.0, **settings, proximal=True), model)
    now = Step(0, WeightEdits())
    now.optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with torch.no_grad():
        plugin.after_update(now)
    assert model.weight[0, 0].item() == pytest.approx((3 + 4j) * left)
    assert (model.weight[1, 0] == 0) == ("p" not in settings or settings["p"] == 1)


@pytest.mark.parametrize(
    "settings", [{}, {"p": 1}, {"l1_ratio": 0.5}, {"groups": "rows"}, {"alpha": {"1": 0.3, "*": 0.3}}]
)
def test_the_term_of_mixed_types_is_exact(settings) -> None:
    torch.manual_seed(0)
    types = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
    model = nn.Sequential(*(nn.Linear(64, 64, dtype=dtype) for dtype in types))
    exact = nn.Sequential(*(nn.Linear(64, 64, dtype=torch.float64) for _ in types))
    for layer, twin in zip(model, exact, strict=True):
        twin.weight.data = layer.weight.detach().double()
    found, wanted = (attached(NormPenalty(**{"alpha": 0.3, **settings}), one) for one in (model, exact))
    assert found.weight_penalty(step()).item() == pytest.approx(wanted.weight_penalty(step()).item(), rel=1e-6)
    for one in (model, exact):
        set_gradients(one, 0.0)
    found.weight_penalty_gradient(step())
    wanted.weight_penalty_gradient(step())
    for layer, twin in zip(model, exact, strict=True):
        torch.testing.assert_close(layer.weight.grad.double(), twin.weight.grad, rtol=1e-2, atol=1e-4)


def test_a_group_of_zeros_is_finite_in_each_type() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float16))
    plugin = attached(NormPenalty(0.3, groups="rows"), model)
    for layer in model:
        nn.init.zeros_(layer.weight)
    set_gradients(model, 0.0)
    plugin.weight_penalty_gradient(step())
    assert not any(layer.weight.grad.any() for layer in model)


@pytest.mark.parametrize("groups", ["rows", "columns"])
@pytest.mark.parametrize("proximal", [False, True])
def test_groups_of_a_transposed_convolution_are_those_of_the_map_it_transposes(groups, proximal) -> None:
    # the same numbers as a linear map: y_o = sum_i w[i, o] x_i
    linear, transposed = nn.Linear(2, 3, bias=False), nn.ConvTranspose2d(2, 3, 1, bias=False)
    transposed.weight.data = linear.weight.detach().T.reshape(2, 3, 1, 1).clone()
    for model in (linear, transposed):
        plugin = attached(NormPenalty(0.2, groups=groups, proximal=proximal), model)
        set_gradients(model, 0.0)
        now = Step(0, WeightEdits())
        now.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with torch.no_grad():
            plugin.weight_penalty_gradient(now)
            now.optimizer.step()
            plugin.after_update(now)
    torch.testing.assert_close(transposed.weight.flatten(1).T, linear.weight)


def padded() -> nn.Sequential:
    model = nn.Sequential(nn.Embedding(4, 3, padding_idx=1), nn.Linear(3, 2))
    model[0].weight.data[1] = 2.0  # such as a pretrained vector
    return model


@pytest.mark.parametrize("settings", [*EVERY_TERM, {"alpha": 0.3, "p": 1}], ids=str)
@pytest.mark.parametrize("table", [nn.Embedding, nn.EmbeddingBag])
def test_the_row_of_padding_gets_no_penalty(settings, table) -> None:
    model = padded()
    if table is nn.EmbeddingBag:
        model[0] = nn.EmbeddingBag(4, 3, padding_idx=-3, _weight=model[0].weight.detach().clone())
    plugin = attached(NormPenalty(**{"alpha": 0.3, **settings}), model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    model[0].weight.data[1] = 2.0
    set_gradients(model, 0.0)
    before = plugin.weight_penalty(step())
    plugin.weight_penalty_gradient(step())
    assert not model[0].weight.grad[1].any()
    assert model[0].weight.grad[[0, 2, 3]].any(1).all()
    model[0].weight.data[1] = 5.0
    assert plugin.weight_penalty(step()) == before


@pytest.mark.parametrize(
    "settings", [{"p": 1}, {"groups": "rows"}, {"groups": "columns"}, {"around": "start"}], ids=str
)
def test_the_row_of_padding_stays_in_a_proximal_step(settings) -> None:
    model = padded()
    plugin = attached(NormPenalty(0.3, proximal=True, **settings), model)
    move(model)
    model[0].weight.data[1] = 3.0
    before = model[0].weight.detach().clone()
    now = Step(0, WeightEdits())
    now.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with torch.no_grad():
        plugin.after_update(now)
    assert torch.equal(model[0].weight[1], before[1])
    assert not torch.equal(model[0].weight[0], before[0])


def test_sparse_gradients_are_refused_by_name() -> None:
    model = nn.Embedding(4, 3, sparse=True)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match=r"weight has sparse gradients, .* sparse=False"):
        attached(NormPenalty(0.1), model).weight_penalty_gradient(step())


def test_the_lengths_of_weight_norm_are_gains_which_are_not_penalized() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    names = [name for part in attached(NormPenalty(0.1), model).parts_ for name in part.names]
    assert names == ["0.parametrizations.weight.original1", "1.weight"]
