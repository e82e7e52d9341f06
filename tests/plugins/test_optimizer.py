from __future__ import annotations

import logging
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from framework.data import Data
from framework.engine.core import Core
from framework.errors import UserError
from framework.ops.muon import Muon
from framework.plugin import Plugin
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from framework.recipe.recipe import Recipe
from framework.run.fit import fit
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer, optimizer_class, why_not_fused


class ThirdParty(torch.optim.SGD):
    """An optimizer of someone else's, with arguments of its own."""

    def __init__(self, params: Any, lr: float, boldness: float = 1.0, **others: Any) -> None:
        super().__init__(params, lr=lr * boldness, **others)


class Norms(Plugin):
    """Keeps the norm of the gradients that reach clipping."""

    def attach(self, core: Core) -> None:
        self.norms_: list[float] = []

    def transform_gradients(self, step: Step) -> None:
        assert step.optimizer is not None
        gradients = [p.grad for group in step.optimizer.param_groups for p in group["params"]]
        self.norms_.append(nn.utils.get_total_norm(gradients).item())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def made(plugin: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    plugin.attach(types.SimpleNamespace(model=model))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = plugin.group_parameters([{"params": named}])
    return plugin.make_optimizer([{**group, "params": [p for _, p in group["params"]]} for group in groups])


def options_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    found = [group for group in optimizer.param_groups if any(p is parameter for p in group["params"])]
    assert len(found) == 1
    return found[0]


def hand_steps(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, steps: int) -> None:
    for window in list(data.train_loader(seed=0))[:steps]:
        optimizer.zero_grad()
        for x, y in window.batches:
            cross_entropy(model(x), y).backward()
        optimizer.step()


# ---- classes and options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ["SGD", "torch.optim.SGD", torch.optim.SGD])
def test_a_class_is_given_by_name_path_or_itself(cls: Any) -> None:
    assert optimizer_class(cls) is torch.optim.SGD
    assert type(made(Optimizer(cls, lr=0.1), network())) is torch.optim.SGD


def test_every_optimizer_of_torch_is_found() -> None:
    names = [name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type) and name != "Optimizer"]
    assert len(names) > 12
    for name in names:
        assert issubclass(optimizer_class(name), torch.optim.Optimizer)


def test_a_third_partys_class_with_options(
    core_of: Callable[..., Core], train: Callable[..., object], weights: Callable[[Core], Tensor]
) -> None:
    theirs = core_of(Optimizer(ThirdParty, lr=0.05, options={"boldness": 2.0, "momentum": 0.5}))
    ours = core_of(Optimizer("SGD", lr=0.05, options={"momentum": 0.5}, fused=False))
    for core in (theirs, ours):
        train(core)
    # groups carry the learning rate, so that boldness moves only the default of the class
    assert torch.equal(weights(theirs), weights(ours))
    assert theirs.at.optimizer.defaults["lr"] == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cls": "RMSProp"}, "did you mean 'RMSprop'"),
        ({"cls": "torch.optim.Nope"}, "no attribute 'Nope'"),
        ({"cls": "no_such_package.SGD"}, "No module named 'no_such_package'"),
        ({"cls": nn.Linear}, "subclass of torch.optim.Optimizer"),
        ({"cls": "torch.nn.Linear"}, "subclass of torch.optim.Optimizer"),
        ({"lr": -1e-3}, r"lr=-0.001.*>= 0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": math.inf}, "finite"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"options": {"beta": (0.9, 0.99)}}, "AdamW has no such argument; did you mean 'betas'"),
        ({"options": {"weight_decay": 0.1}}, r"Optimizer\(weight_decay=...\)"),
        ({"options": {"fused": True}}, r"Optimizer\(fused=...\)"),
        ({"cls": "LBFGS", "weight_decay": 0.1}, "LBFGS takes no weight_decay"),
        ({"groups": {"3": {"lr_scales": 2.0}}}, "did you mean 'lr_scale'"),
        ({"groups": {"3": {"lr_scale": -2.0}}}, "every value is"),
        ({"adamw": "3"}, "with cls='Muon' only"),
        ({"clip_norm": 0.0}, "clip_norm must be a number > 0"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, "leave one out"),
    ],
)
def test_mistakes_are_reported_when_it_is_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Optimizer(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": {"head.*": {}}}, "'head.*' matches no weight"),
        ({"cls": "Muon", "adamw": "head"}, "'head' matches no weight"),
        ({"options": {"betas": (2.0, 0.9)}}, "Invalid beta parameter"),
        ({"cls": "RMSprop", "fused": True}, "RMSprop has no fused kernel; leave fused out"),
        ({"cls": "LBFGS", "groups": {"3": {"lr_scale": 2.0}}}, "parameter groups"),
    ],
)
def test_mistakes_that_show_with_the_network(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(Optimizer(**settings), network())


def test_two_optimizers_are_an_error_that_names_both(
    core_of: Callable[..., Core], train: Callable[..., object]
) -> None:
    core = core_of(Optimizer(), Optimizer("SGD", name="other"))
    with pytest.raises(UserError, match="'optimizer' and 'other'"):
        train(core)


def test_settings_are_plain_data_from_which_it_is_made_again() -> None:
    plugin = Optimizer(torch.optim.SGD, lr=0.1, options={"momentum": 0.9})
    assert plugin.settings()["cls"] == "torch.optim.sgd.SGD"
    assert optimizer_class(plugin.settings()["cls"]) is torch.optim.SGD


# ---- groups ----------------------------------------------------------------------------------------------------------


def test_biases_and_norm_gains_do_not_decay() -> None:
    model = network()
    optimizer = made(Optimizer(weight_decay=0.1), model)
    assert len(optimizer.param_groups) == 2
    for layer in (model[0], model[3]):
        assert options_of(optimizer, layer.weight)["weight_decay"] == 0.1
        assert options_of(optimizer, layer.bias)["weight_decay"] == 0.0
    assert options_of(optimizer, model[1].weight)["weight_decay"] == 0.0
    everything = made(Optimizer(weight_decay=0.1, decay_biases=True), model)
    assert [group["weight_decay"] for group in everything.param_groups] == [0.1]


def test_without_decay_there_is_one_group_and_adamw_does_not_decay() -> None:
    optimizer = made(Optimizer(), network())
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(1e-3, 0.0)]


def test_groups_by_pattern_scale_rate_and_decay() -> None:
    model = network()
    groups = {"3.bias": {"lr_scale": 5.0}, "3": {"lr_scale": 10.0, "decay_scale": 0.5}, "BatchNorm1d": {"lr_scale": 0}}
    optimizer = made(Optimizer(lr=0.01, weight_decay=0.1, groups=groups), model)
    got = {
        name: (options_of(optimizer, p)["lr"], options_of(optimizer, p)["weight_decay"])
        for name, p in model.named_parameters()
    }
    assert got == {
        "0.weight": (0.01, 0.1),
        "0.bias": (0.01, 0.0),
        "1.weight": (0.0, 0.0),
        "1.bias": (0.0, 0.0),
        "3.weight": (pytest.approx(0.1), 0.05),
        "3.bias": (0.05, 0.0),
    }


def test_options_of_groups_from_other_plugins_are_kept() -> None:
    model = network()
    plugin = Optimizer("SGD", lr=0.1, groups={"3": {"lr_scale": 2.0}})
    plugin.attach(types.SimpleNamespace(model=model))
    groups = plugin.group_parameters([{"params": list(model.named_parameters()), "lr": 0.5, "momentum": 0.9}])
    assert [(group["lr"], group["momentum"]) for group in groups] == [(0.5, 0.9), (1.0, 0.9)]


def test_frozen_parameters_are_left_alone(core_of: Callable[..., Core], train: Callable[..., object]) -> None:
    core = core_of(Optimizer("SGD", lr=0.1, weight_decay=0.5))
    core.model[0].weight.requires_grad_(False)
    before = core.model[0].weight.clone()
    train(core)
    assert torch.equal(core.model[0].weight, before)
    assert sum(len(group["params"]) for group in core.at.optimizer.param_groups) == 3


def test_a_fit_is_the_hand_written_loop(
    core_of: Callable[..., Core], train: Callable[..., object], mlp: Callable[..., nn.Sequential], data: Data
) -> None:
    core = core_of(Optimizer(lr=0.01, weight_decay=0.1, options={"betas": (0.8, 0.9)}))
    train(core, max_steps=5)
    model = mlp()
    optimizer = torch.optim.AdamW(
        [
            {"params": [model[0].weight, model[2].weight], "weight_decay": 0.1},
            {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.8, 0.9),
        fused=True,
    )
    hand_steps(model, optimizer, data, 5)
    for ours, theirs in zip(core.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_decoupled_decay_is_not_l2_under_adam_but_is_under_sgd(
    core_of: Callable[..., Core], train: Callable[..., object], weights: Callable[[Core], Tensor]
) -> None:
    def run(*plugins: Any) -> Tensor:
        core = core_of(*plugins)
        train(core)
        return weights(core)

    decoupled = run(Optimizer("AdamW", lr=0.01, weight_decay=0.1))
    penalized = run(NormPenalty(0.1), Optimizer("Adam", lr=0.01))
    assert (decoupled - penalized).abs().max() > 1e-2
    assert torch.allclose(penalized, run(Optimizer("Adam", lr=0.01, weight_decay=0.1)), atol=1e-5)
    sgd = run(Optimizer("SGD", lr=0.1, weight_decay=0.1))
    assert torch.allclose(run(NormPenalty(0.1), Optimizer("SGD", lr=0.1)), sgd, atol=1e-6)


def test_how_much_decoupled_decay_and_l2_differ_in_adams_first_step(
    core_of: Callable[..., Core], train: Callable[..., object], data: Data
) -> None:
    # Adam's first step is the sign of the gradient, in which L2 is lost where it does not turn the sign, while
    # decoupled decay takes off lr * decay * w whatever the gradient
    lr, decay = 0.01, 1e-3
    start = core_of(data=Data(data.train, batch_size=100))
    x, y = data.train
    cross_entropy(start.model(x), y).backward()
    gradient, weight = start.model[2].weight.grad, start.model[2].weight.detach().clone()
    assert gradient is not None
    large = gradient.abs() > 10 * decay * weight.abs() + 1e-4
    assert large.sum() > 50

    def first_step(*plugins: Any) -> Tensor:
        core = core_of(*plugins, data=Data(data.train, batch_size=100))
        train(core, max_steps=1)
        return core.model[2].weight.detach()

    decoupled = first_step(Optimizer("AdamW", lr=lr, weight_decay=decay))
    penalized = first_step(NormPenalty(decay), Optimizer("Adam", lr=lr))
    plain = first_step(Optimizer("Adam", lr=lr))
    assert torch.allclose(penalized[large], plain[large], atol=1e-6)
    assert torch.allclose((penalized - decoupled)[large], lr * decay * weight[large], atol=1e-6)
    assert (lr * decay * weight[large]).abs().max() > 2e-6


def test_lbfgs_goes_through_the_core(core_of: Callable[..., Core], train: Callable[..., object], data: Data) -> None:
    whole = Data(data.train, batch_size=100)
    core = core_of(Optimizer("LBFGS", lr=1.0, options={"line_search_fn": "strong_wolfe"}), data=whole)
    x, y = data.train
    before = cross_entropy(core.model(x), y).item()
    train(core, max_epochs=3)
    assert cross_entropy(core.model(x), y).item() < 0.1 * before


# ---- fused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", ["AdamW", "Adam", "SGD", "Adagrad"])
def test_what_has_a_fused_kernel_is_fused_and_moves_every_weight(cls: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 8).to(dtype)
    optimizer = made(Optimizer(cls, lr=0.1), model)
    broken = cls == "SGD" and dtype in (torch.bfloat16, torch.float16)
    assert bool(optimizer.param_groups[0]["fused"]) is not broken
    before = model.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.allclose(model.weight, before - 0.1, atol=1e-2)


def test_why_it_is_not_fused(caplog: pytest.LogCaptureFixture) -> None:
    real, imaginary = [torch.ones(2)], [torch.ones(2, dtype=torch.complex64)]
    reason = why_not_fused
    assert reason(torch.optim.AdamW, {}, real, sparse=False) is None
    assert "foreach" in (reason(torch.optim.AdamW, {"foreach": True}, real, sparse=False) or "")
    assert "sparse" in (reason(torch.optim.SGD, {}, real, sparse=True) or "")
    assert "real" in (reason(torch.optim.SGD, {}, imaginary, sparse=False) or "")
    assert "meta" in (reason(torch.optim.SGD, {}, [torch.ones(2, device="meta")], sparse=False) or "")
    with caplog.at_level(logging.INFO, logger="plugins.optimizer"):
        made(Optimizer("NAdam"), network())
    assert "NAdam is not fused: NAdam has no fused kernel" in caplog.text


def test_sparse_gradients_and_fused_on_request() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True))
    optimizer = made(Optimizer("SGD", lr=0.1), model)
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert not optimizer.param_groups[0]["fused"]
    assert made(Optimizer(fused=False), network()).param_groups[0]["fused"] is None


# ---- clipping --------------------------------------------------------------------------------------------------------


def clipped(plugin: Optimizer, *gradients: list[float], logged: bool = True) -> tuple[list[list[float]], Step, bool]:
    parameters = [nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    step = Step(0, WeightEdits())
    step.optimizer = torch.optim.SGD([*parameters, nn.Parameter(torch.zeros(1))], lr=1.0)
    step.logged = logged
    answer = plugin.clip_gradients(step)
    return [p.grad.tolist() for p in parameters], step, answer


def test_clipping_by_norm_scales_all_gradients() -> None:
    gradients, step, answer = clipped(Optimizer(clip_norm=1.0), [3.0, 0.0], [0.0, -4.0])
    assert answer
    assert gradients[0] == pytest.approx([0.6, 0.0], abs=1e-6)
    assert gradients[1] == pytest.approx([0.0, -0.8], abs=1e-6)
    assert float(step.records["grad_norm"]) == pytest.approx(5.0)
    assert clipped(Optimizer(clip_norm=10.0), [3.0, 4.0])[0] == [[3.0, 4.0]]


@pytest.mark.parametrize("logged", [False, True])
def test_clipping_by_value_is_entry_by_entry(logged: bool) -> None:
    gradients, step, answer = clipped(Optimizer(clip_value=1.0), [3.0, 0.5], [0.0, -4.0], logged=logged)
    assert answer
    assert gradients == [[1.0, 0.5], [0.0, -1.0]]
    assert ("grad_norm" in step.records) == logged


def test_without_clipping_it_leaves_it_to_others() -> None:
    gradients, _, answer = clipped(Optimizer(), [3.0, 4.0])
    assert not answer
    assert gradients == [[3.0, 4.0]]


def test_clipping_in_a_fit_bounds_the_update(core_of: Callable[..., Core], train: Callable[..., object]) -> None:
    core = core_of(Optimizer("SGD", lr=1.0, clip_norm=1e-3))
    before = [p.detach().clone() for p in core.model.parameters()]
    train(core, max_steps=1)
    moved = torch.cat([(p - b).flatten() for p, b in zip(core.model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_clipping_twice_is_reported(core_of: Callable[..., Core], train: Callable[..., object]) -> None:
    with pytest.raises(UserError, match=r"optimizer.*gradient_clip_val"):
        train(core_of(Optimizer(clip_norm=1.0), clip=(1.0, "norm")))


@pytest.mark.parametrize("cls", ["AdamW", "Muon", "NAdam"])
def test_a_grad_scaler_changes_nothing(cls: str, core_of: Callable[..., Core], train: Callable[..., object]) -> None:
    def run(precision: list[Any]) -> tuple[Core, list[float]]:
        core = core_of(NormPenalty(0.1), watch := Norms(), Optimizer(cls, lr=0.01, clip_norm=0.1))
        train(core, plugins=precision)
        return core, watch.norms_

    # float16 against bfloat16: the same but for rounding
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled = run([MixedPrecision("16-mixed", device="cpu", scaler=scaler)])
    plain = run([MixedPrecision("bf16-mixed", device="cpu")])
    assert scaler.get_scale() == 2.0**10
    assert scaled[1] == pytest.approx(plain[1], rel=0.05)
    for ours, theirs in zip(scaled[0].model.parameters(), plain[0].model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=5e-3)


@pytest.mark.parametrize("cls", ["SGD", "AdamW"])
def test_a_first_step_that_is_skipped_leaves_no_state(
    cls: str, core_of: Callable[..., Core], train: Callable[..., object]
) -> None:
    options = {"momentum": 0.9} if cls == "SGD" else {}
    core = core_of(Optimizer(cls, lr=0.1, options=options))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    train(core, plugins=[MixedPrecision("16-mixed", device="cpu", scaler=scaler)], max_steps=1)
    assert scaler.get_scale() == 2.0**39
    optimizer = core.trainer.optimizers[0]
    assert optimizer.defaults["fused"]
    assert not optimizer.state


# ---- Muon ------------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    """Embedding, one hidden layer, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 6)
        self.head = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(x)).tanh())


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    model = Words()
    optimizer = made(Optimizer("Muon", lr=0.02, weight_decay=0.1, adamw="head"), model)
    assert type(optimizer) is Muon
    by_muon = [name for name, p in model.named_parameters() if options_of(optimizer, p)["use_muon"]]
    assert by_muon == ["hidden.weight"]
    assert options_of(optimizer, model.hidden.weight)["weight_decay"] == 0.1
    assert options_of(optimizer, model.head.weight)["fused"] is True
    assert options_of(optimizer, model.head.bias)["weight_decay"] == 0.0
    assert optimizer_class(torch.optim.Muon) is Muon


def test_options_reach_muon_and_adamw() -> None:
    model = Words()
    options = {"momentum": 0.8, "ns_steps": 3, "betas": (0.5, 0.6)}
    optimizer = made(Optimizer("Muon", options=options), model)
    assert options_of(optimizer, model.hidden.weight)["momentum"] == 0.8
    assert options_of(optimizer, model.hidden.weight)["ns_steps"] == 3
    assert options_of(optimizer, model.embedding.weight)["betas"] == (0.5, 0.6)


def test_muon_and_adamw_as_one_equal_torchs_two(
    core_of: Callable[..., Core], train: Callable[..., object], mlp: Callable[..., nn.Sequential], data: Data
) -> None:
    core = core_of(Optimizer("Muon", lr=0.02, weight_decay=0.1, adamw="2"))
    train(core, max_steps=5)
    model = mlp()
    matrices = torch.optim.Muon([model[0].weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = torch.optim.AdamW(
        [
            {"params": [model[2].weight], "weight_decay": 0.1},
            {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0},
        ],
        lr=0.02,
        fused=True,
    )
    both = types.SimpleNamespace(
        zero_grad=lambda: (matrices.zero_grad(), rest.zero_grad()), step=lambda: (matrices.step(), rest.step())
    )
    hand_steps(model, both, data, 5)
    for ours, theirs in zip(core.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_muon_resumes_to_the_same_bits(
    core_of: Callable[..., Core], train: Callable[..., object], weights: Callable[[Core], Tensor], tmp_path: Path
) -> None:
    def core() -> Core:
        return core_of(Optimizer("Muon", lr=0.02, weight_decay=0.01, adamw="2"))

    whole, first, second = core(), core(), core()
    train(whole, max_epochs=2)
    keep = ModelCheckpoint(tmp_path, filename="half", save_on_train_epoch_end=True)
    train(first, callbacks=[keep], enable_checkpointing=True)
    train(second, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(whole), weights(second))


def test_muon_is_one_optimizer_for_schedulers_closures_and_new_groups() -> None:
    model = Words()
    optimizer = made(Optimizer("Muon", lr=0.02), model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    x = torch.tensor([1, 2, 3])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(x), x)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    scheduler.step()
    assert all(group["lr"] == 0.01 for group in optimizer.param_groups)
    second = optimizer.step(closure)
    assert second.item() < first.item()
    extra = nn.Parameter(torch.eye(3))
    optimizer.add_param_group({"params": [extra], "use_muon": True, "lr": 0.1})
    optimizer.zero_grad()
    assert model.hidden.weight.grad is None
    extra.grad = torch.ones(3, 3)
    optimizer.step()
    assert not torch.equal(extra, torch.eye(3))
    assert len(optimizer.state_dict()["state"]) == 1 + len(list(model.parameters()))


def test_muon_through_fit(recipe: Callable[..., Recipe]) -> None:
    run = fit(recipe([Optimizer("Muon", lr=0.02, adamw="2")]), logs=None, trainer={"max_epochs": 8})
    assert run.metrics["val/accuracy"] > 0.7


# ---- sparse gradients, and tables under Muon -------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.01}, {"clip_value": 0.01}], ids=str)
@pytest.mark.parametrize("trainer", [{}, {"gradient_clip_val": 0.01}, {"gradient_clip_algorithm": "value"}], ids=str)
def test_sparse_gradients_train_as_dense_ones_do_at_logged_steps(settings, trainer, tmp_path) -> None:
    if settings and trainer:
        pytest.skip("one of the two clips")
    trainer = {"gradient_clip_val": 0.01, **trainer} if trainer else trainer
    tokens = torch.randint(0, 11, (32, 2), generator=torch.Generator().manual_seed(0))
    runs = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(11, 3, sparse=sparse), nn.Flatten(), nn.Linear(6, 1))
        data = Data((tokens, torch.ones(32, 1)), batch_size=8)
        recipe = Recipe(
            model, data, nn.functional.mse_loss, plugins=[Optimizer("SGD", lr=0.5, fused=False, **settings)]
        )
        options = {"max_epochs": 2, "enable_progress_bar": False, "log_every_n_steps": 1, **trainer}
        runs.append(fit(recipe, logs=tmp_path / str(sparse), trainer=options))
    for ours, theirs in zip(*(run.core.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("first", ["table", "head"])
@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_a_table_tied_to_a_head_is_moved_by_adamw(core_of, first, make) -> None:
    table, head = make(11, 8), nn.Linear(8, 11, bias=False)
    head.weight = table.weight
    layers = {"table": table, "head": head} if first == "table" else {"head": head, "table": table}
    model = nn.ModuleDict({**layers, "hidden": nn.Linear(8, 8), "turn": nn.Linear(8, 8, dtype=torch.complex64)})
    core = core_of(Optimizer("Muon"), model=model)
    core.attach_plugins()
    groups = core.parameter_groups()
    moved = {id(parameter): g["use_muon"] for g in groups for _, parameter in g["params"]}
    assert not moved[id(table.weight)]
    assert moved[id(model["hidden"].weight)]
    assert not moved[id(model["turn"].weight)]
