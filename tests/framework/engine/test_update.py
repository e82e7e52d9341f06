"""One optimizer step: its order, its clipping, its schedules, and steps that are skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torchmetrics.classification import MulticlassAccuracy

from framework.data import Data
from framework.data.outcome import Outcome
from framework.engine.core import Core
from framework.errors import UserError
from framework.plugin import Plugin

CoreOf = Callable[..., Core]
Train = Callable[..., pl.Trainer]
Weights = Callable[[Core], Tensor]


class Make(Plugin):
    """Optimizer and scheduler of the test's choice."""

    cls: Any = torch.optim.SGD
    options: Any = None
    schedule: Any = None
    interval: str = "step"
    more: Any = None

    def make_optimizer(self, groups: Any) -> Any:
        return self.cls(groups, **(self.options or {"lr": 0.5}))

    def make_scheduler(self, optimizer: Any, total_steps: int) -> Any:
        self.total_ = total_steps
        if self.schedule is None:
            return None
        return {"scheduler": self.schedule(optimizer), "interval": self.interval, **(self.more or {})}


class Rates(Plugin):
    """Records the notice after each update, and the rate and step index of each step begun."""

    def attach(self, core: Core) -> None:
        self.model_ = core.model
        self.begun_: list[tuple[int, float]] = []
        self.updates_: list[int] = []
        self.weights_ = [self.now()]

    def now(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model_.parameters()])

    def begin_step(self, step: Any) -> None:
        self.begun_.append((step.index, step.optimizer.param_groups[0]["lr"]))

    def after_update(self, step: Any) -> None:
        self.updates_.append(step.index)
        self.weights_.append(self.now())


def scaled(init_scale: float) -> dict[str, Any]:
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=1000)
    return {"plugins": [MixedPrecision("16-mixed", device="cpu", scaler=scaler)]}


def halve(optimizer: Any) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 0.5**step)


# ---- order -----------------------------------------------------------------------------------------------------------


def test_gradients_are_finished_in_the_order_of_the_contract(core_of: CoreOf, train: Train) -> None:
    told: list[str] = []

    class First(Plugin):
        def weight_penalty(self, step: Any) -> Tensor:
            return torch.tensor(0.0)

        def weight_penalty_gradient(self, step: Any) -> None:
            told.append("penalty")

        def transform_gradients(self, step: Any) -> None:
            told.append("1")

        def clip_gradients(self, step: Any) -> bool:
            told.append("clip")
            return True

        def after_update(self, step: Any) -> None:
            told.append(f"after {step.optimizer.state_dict()['state'][0]['step']:.0f}")

    class Second(First):
        def clip_gradients(self, step: Any) -> bool:
            return False

        def transform_gradients(self, step: Any) -> None:
            told.append("2")

    train(core_of(First(), Second()), max_steps=2)
    one = ["penalty", "penalty", "1", "2", "clip"]
    assert told == [*one, "after 1", "after 1", *one, "after 2", "after 2"]


def test_gradients_may_be_changed_in_place(core_of: CoreOf, train: Train, weights: Weights) -> None:
    class Scale(Plugin):
        by: float = 0.5

        def transform_gradients(self, step: Any) -> None:
            for group in step.optimizer.param_groups:
                torch._foreach_mul_([p.grad for p in group["params"]], self.by)

    halved, slow = core_of(Make(), Scale()), core_of(Make(options={"lr": 0.25}))
    train(halved)
    train(slow)
    assert torch.equal(weights(halved), weights(slow))


# ---- steps that are skipped ------------------------------------------------------------------------------------------


def test_a_skipped_step_notifies_no_plugin_and_moves_no_schedule(core_of: CoreOf, train: Train) -> None:
    """From a scale of 2^24 float16 gradients overflow; the scaler halves it until they fit."""
    rates, make = Rates(), Make(schedule=halve)
    trainer = train(core_of(make, rates), max_epochs=2, **scaled(2.0**24))
    skipped = [index for index, _ in rates.begun_ if index not in rates.updates_]
    assert 0 < len(skipped) < 12
    assert [index for index, _ in rates.begun_] == list(range(14))
    assert trainer.global_step == 14, "Lightning counts skipped steps too"
    by_updates = [sum(update < index for update in rates.updates_) for index, _ in rates.begun_]
    assert [rate for _, rate in rates.begun_] == [0.5 * 0.5**done for done in by_updates]
    assert all(not torch.equal(a, b) for a, b in zip(rates.weights_, rates.weights_[1:], strict=False))


def test_nothing_but_skipped_steps_leaves_the_weights(core_of: CoreOf, train: Train, weights: Weights) -> None:
    rates = Rates()
    core = core_of(Make(), rates)
    train(core, **scaled(2.0**60))
    assert rates.updates_ == []
    assert torch.equal(weights(core), rates.weights_[0])


@pytest.mark.parametrize("fused", [False, True])
def test_unscaled_gradients_reach_plugins_clipping_and_optimizer(
    core_of: CoreOf, train: Train, weights: Weights, fused: bool
) -> None:
    norms: dict[float, list[float]] = {}

    class Watch(Plugin):
        scale: float = 1.0

        def transform_gradients(self, step: Any) -> None:
            gradients = [p.grad for group in step.optimizer.param_groups for p in group["params"]]
            norms.setdefault(self.scale, []).append(torch.nn.utils.get_total_norm(gradients).item())

    def trained(scale: float) -> Tensor:
        make = Make(torch.optim.AdamW, {"lr": 1e-2, "fused": fused})
        core = core_of(make, Watch(scale), clip=(0.5, "norm"))
        train(core, **scaled(scale))
        return weights(core)

    torch.testing.assert_close(trained(1.0), trained(1024.0), rtol=1e-2, atol=1e-3)
    assert norms[1.0] == pytest.approx(norms[1024.0], rel=1e-2)
    assert max(norms[1.0]) > 0.5


def test_a_batch_left_out_makes_no_step(core_of: CoreOf, train: Train) -> None:
    class Some(Core):
        def compute_loss(self, batch: Any) -> Any:
            return Outcome(None) if self.training and self.at.index % 2 else super().compute_loss(batch)

    rates = Rates()
    trainer = train(core_of(Make(schedule=halve), rates, kind=Some))
    assert rates.updates_ == [0, 2, 4, 6]
    assert rates.begun_[-1] == (6, 0.5 * 0.5**3)
    assert trainer.global_step == 7


# ---- clipping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["norm", "value", None])
def test_clipping_by_the_trainers_options_is_torchs(
    core_of: CoreOf, train: Train, weights: Weights, data: Data, mlp: Any, algorithm: str | None
) -> None:
    core, model = core_of(Make(), clip=(0.05, algorithm)), mlp()
    train(core)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for window in data.train_loader(seed=0):
        optimizer.zero_grad()
        cross_entropy(model(window.batches[0][0]), window.batches[0][1]).backward()
        if algorithm == "value":
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.05)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    assert torch.equal(weights(core), torch.cat([p.detach().flatten() for p in model.parameters()]))


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        ((1.0, "nrom"), "gradient_clip_algorithm='nrom': must be 'norm' or 'value'"),
        ((0, None), "gradient_clip_val=0: must be a number > 0"),
        ((-1.0, None), "gradient_clip_val=-1.0: must be a number > 0"),
        (("1", None), "gradient_clip_val='1': must be a number > 0"),
        ((float("nan"), None), "gradient_clip_val=nan: must be a"),
    ],
)
def test_clipping_options_are_checked(core_of: CoreOf, clip: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        core_of(clip=clip)


class Clip(Plugin):
    def clip_gradients(self, step: Any) -> bool:
        return True


def test_clipping_twice_is_refused(core_of: CoreOf, train: Train) -> None:
    with pytest.raises(UserError, match="clip_gradients: 'clip' and 'other' both answer, but only one may"):
        train(core_of(Clip(), Clip(name="other")))
    with pytest.raises(UserError, match="clip_gradients: 'clip' and the Trainer's gradient_clip_val both answer"):
        train(core_of(Clip(), clip=(1.0, None)))


# ---- optimizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_lbfgs_is_torchs_with_its_closure(
    core_of: CoreOf, train: Train, weights: Weights, data: Data, mlp: Any, accumulate: int
) -> None:
    options = {"lr": 0.3, "max_iter": 5, "history_size": 4}
    cut = Data(data.train, data.val, batch_size=50 // accumulate)
    core, model = core_of(Make(torch.optim.LBFGS, options), data=cut, accumulate=accumulate), mlp()
    train(core)
    optimizer = torch.optim.LBFGS(model.parameters(), **options)
    for window in cut.train_loader(seed=0, accumulate=accumulate):

        def closure() -> float:
            optimizer.zero_grad()
            total = 0.0
            for x, y in window.batches:  # noqa: B023 - called within the turn
                part = cross_entropy(model(x), y) * (len(x) / window.total)  # noqa: B023
                part.backward()
                total += part.detach()
            return total

        optimizer.step(closure)
    torch.testing.assert_close(weights(core), torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert core.trainer.global_step == 2


def test_lbfgs_minimizes_the_terms_on_weights_too(core_of: CoreOf, train: Train, data: Data, mlp: Any) -> None:
    """With a strong norm penalty, nothing but the penalty is left: the weights go to zero."""

    class Norm(Plugin):
        def attach(self, core: Core) -> None:
            self.model_ = core.model

        def weight_penalty(self, step: Any) -> Tensor:
            return 50.0 * sum((p**2).sum() for p in self.model_.parameters())

        def weight_penalty_gradient(self, step: Any) -> None:
            for p in self.model_.parameters():
                p.grad.add_(p, alpha=100.0)

    make = Make(torch.optim.LBFGS, {"lr": 1.0, "max_iter": 20, "line_search_fn": "strong_wolfe"})
    core = core_of(make, Norm(), data=Data(data.train, batch_size=100))
    train(core)
    assert max(p.abs().max().item() for p in core.model.parameters()) < 2e-2


def test_lbfgs_under_a_scaler_is_refused(core_of: CoreOf, train: Train) -> None:
    with pytest.raises(UserError, match="LBFGS evaluates the objective several times a step, which a GradScaler does"):
        train(core_of(Make(torch.optim.LBFGS, {"lr": 1.0})), **scaled(1.0))


def test_two_optimizers_are_refused(core_of: CoreOf, train: Train) -> None:
    with pytest.raises(UserError, match="make_optimizer: 'make' and 'other' both answer"):
        train(core_of(Make(), Make(name="other")))


def test_groups_are_folded_and_handed_on(core_of: CoreOf, train: Train) -> None:
    class Split(Plugin):
        def group_parameters(self, groups: Any) -> Any:
            named = [pair for group in groups for pair in group["params"]]
            return [
                {"params": [pair for pair in named if "weight" in pair[0]], "lr": 0.1},
                {"params": [pair for pair in named if "bias" in pair[0]], "lr": 0.2},
                {"params": []},
            ]

    class Halve(Plugin):
        def group_parameters(self, groups: Any) -> Any:
            return [{**group, "lr": group.get("lr", 1.0) / 2} for group in groups]

    core = core_of(Split(), Halve(), Make())
    train(core, max_steps=1)
    groups = core.at.optimizer.param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.05, 2), (0.1, 2)]


# ---- schedules -------------------------------------------------------------------------------------------------------


def test_schedules_by_step_and_by_epoch(core_of: CoreOf, train: Train) -> None:
    rates, make = Rates(), Make(schedule=halve)
    train(core_of(make, rates), max_epochs=2)
    assert [rate for _, rate in rates.begun_] == [0.5 * 0.5**step for step in range(14)]
    assert make.total_ == 14
    rates = Rates()
    train(core_of(Make(schedule=halve, interval="epoch"), rates), max_epochs=3)
    assert [rate for _, rate in rates.begun_] == [0.5 * 0.5**epoch for epoch in range(3) for _ in range(7)]


def test_frequency(core_of: CoreOf, train: Train) -> None:
    rates = Rates()
    train(core_of(Make(schedule=halve, more={"frequency": 3}), rates))
    assert [rate for _, rate in rates.begun_] == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


def test_total_steps_under_accumulation_limits_and_without_end(core_of: CoreOf, train: Train) -> None:
    make = Make()
    train(core_of(make, accumulate=3), max_epochs=2)
    assert make.total_ == 2 * 3
    train(core_of(make), limit_train_batches=2, max_epochs=3)
    assert make.total_ == 6
    train(core_of(make), max_steps=4)
    assert make.total_ == 4
    train(core_of(make), max_epochs=-1, max_time={"seconds": 0})
    assert make.total_ == -1


def plateau(optimizer: Any) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=10.0, threshold_mode="abs")


@pytest.mark.parametrize("monitor", ["val/loss", "train/loss"])
def test_plateau_halves_after_each_epoch_that_is_no_better(core_of: CoreOf, train: Train, monitor: str) -> None:
    rates = Rates()
    make = Make(schedule=plateau, interval="epoch", more={"monitor": monitor})
    train(core_of(make, rates), max_epochs=4)
    assert [rate for _, rate in rates.begun_][::7] == [0.5, 0.5, 0.25, 0.125]


def test_plateau_waits_for_validation(core_of: CoreOf, train: Train) -> None:
    rates = Rates()
    make = Make(schedule=plateau, interval="epoch", more={"monitor": "val/loss"})
    train(core_of(make, rates), max_epochs=5, check_val_every_n_epoch=2)
    assert [rate for _, rate in rates.begun_][::7] == [0.5, 0.5, 0.5, 0.5, 0.25]


def test_plateau_of_what_is_never_logged(core_of: CoreOf, train: Train) -> None:
    make = Make(schedule=plateau, interval="epoch", more={"monitor": "val/acuracy"})
    metrics = {"accuracy": MulticlassAccuracy(10)}
    with pytest.raises(UserError, match=r"monitor='val/acuracy'.*never logged.*val/accuracy"):
        train(core_of(make, metrics=metrics))


def test_a_scheduler_alone_moves_the_default_optimizer(core_of: CoreOf, train: Train) -> None:
    class Steps(Plugin):
        def make_scheduler(self, optimizer: Any, total_steps: int) -> Any:
            return {"scheduler": StepLR(optimizer, 2, gamma=0.1), "interval": "step"}

    rates = Rates()
    train(core_of(Steps(), rates), max_steps=3)
    assert [rate for _, rate in rates.begun_] == pytest.approx([1e-3, 1e-3, 1e-4])
