"""The core: when each hook point is asked, what is undone, and what Lightning's options do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from framework.data import Data
from framework.data.outcome import Outcome
from framework.engine.core import Core
from framework.engine.notices import as_callbacks
from framework.errors import UserError
from framework.plugin import Plugin
from framework.plugin.hooks import HOOKS
from framework.run.quiet import quiet

CoreOf = Callable[..., Core]
Train = Callable[..., pl.Trainer]
Weights = Callable[[Core], Tensor]


class Diary(Plugin):
    """Records each hook point when it is called."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pages_: list[str] = []

    def prepare_model(self, model: Any) -> Any:
        self.pages_.append("prepare_model")
        return model

    def attach(self, core: Core) -> None:
        core.observe(self, "1")
        self.weights_ = list(core.model.parameters())
        self.pages_.append("attach")

    def group_parameters(self, groups: Any) -> Any:
        self.pages_.append("group_parameters")
        return groups

    def make_optimizer(self, groups: Any) -> Any:
        self.pages_.append("make_optimizer")
        return torch.optim.SGD(groups, lr=0.1)

    def make_scheduler(self, optimizer: Any, total_steps: int) -> Any:
        self.pages_.append("make_scheduler")

    def transform_sample(self, sample: Any, rng: Any) -> Any:
        return sample

    def begin_step(self, step: Any) -> None:
        self.pages_.append("begin_step")

    def transform_batch(self, batch: Any, step: Any) -> Any:
        self.pages_.append("transform_batch")
        return batch

    def edit_weights(self, step: Any) -> None:
        step.edits.save(self.weights_)
        self.pages_.append("edit_weights")

    def transform_activation(self, x: Tensor, layer: str, step: Any) -> Tensor:
        self.pages_.append("transform_activation")
        return x

    def penalty(self, step: Any) -> None:
        self.pages_.append("penalty")

    def second_gradient(self, step: Any, again: Any) -> None:
        self.pages_.append("second_gradient")

    def weight_penalty(self, step: Any) -> Any:
        self.pages_.append("weight_penalty")
        return torch.tensor(0.0)

    def weight_penalty_gradient(self, step: Any) -> None:
        assert not step.edits.open
        self.pages_.append("weight_penalty_gradient")

    def transform_gradients(self, step: Any) -> None:
        self.pages_.append("transform_gradients")

    def clip_gradients(self, step: Any) -> bool:
        self.pages_.append("clip_gradients")
        return False

    def after_update(self, step: Any) -> None:
        self.pages_.append("after_update")

    def evaluation_weights(self, core: Core) -> Any:
        self.pages_.append("evaluation_weights")

    def should_stop(self, metrics: Any) -> bool:
        self.pages_.append("should_stop")
        return False


MICRO = ["transform_batch", "edit_weights", "transform_activation", "penalty"]
STEP = [
    "begin_step",
    *MICRO,
    *MICRO,
    "second_gradient",
    "weight_penalty_gradient",
    "transform_gradients",
    "clip_gradients",
    "after_update",
]


def test_hook_points_are_asked_in_the_order_of_the_contract(core_of: CoreOf, train: Train, tmp_path: Any) -> None:
    diary = Diary()
    logger = pl.loggers.CSVLogger(tmp_path)
    train(core_of(diary, accumulate=2), limit_train_batches=2, logger=logger, log_every_n_steps=2)
    once = ["prepare_model", "attach", "group_parameters", "make_optimizer", "make_scheduler"]
    logged = ["weight_penalty"]
    assert diary.pages_ == [*once, *STEP, *STEP, *logged, "evaluation_weights", "should_stop"]
    asked_here = {*diary.pages_, "transform_sample"}
    assert set(HOOKS) - asked_here == {"export_model", "finish", "lint", "next_phase"}, "asked outside of training"


# ---- edits are undone ------------------------------------------------------------------------------------------------


class Shake(Plugin):
    """Changes the weights; raises where its settings say so."""

    by: float = 1.0
    fails: str = ""

    def attach(self, core: Core) -> None:
        self.weights_ = list(core.model.parameters())

    def edit_weights(self, step: Any) -> None:
        for w in step.edits.save(self.weights_):
            w.add_(self.by)
        if self.fails == "edit":
            raise ArithmeticError

    def penalty(self, step: Any) -> None:
        if self.fails == "penalty":
            raise ArithmeticError

    def transform_gradients(self, step: Any) -> None:
        if self.fails == "gradients":
            raise ArithmeticError

    def after_update(self, step: Any) -> None:
        if self.fails == "after":
            raise ArithmeticError


class Fails(Core):
    """Raises in its forward, or leaves the batch out."""

    error: type[BaseException] | None = None

    def compute_loss(self, batch: Any) -> Outcome:
        if self.training and type(self).error is not None:
            raise type(self).error
        return Outcome(None) if self.training else super().compute_loss(batch)


def test_the_update_is_applied_to_the_clean_weights(core_of: CoreOf, train: Train, mlp: Any, data: Data) -> None:
    class Descent(Plugin):
        def make_optimizer(self, groups: Any) -> Any:
            return torch.optim.SGD(groups, lr=0.5)

    core, model = core_of(Descent(), Shake(0.01), Shake(0.02, name="more")), mlp()
    train(core, max_steps=1)
    clean = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01).add_(0.02)
    x, y = next(iter(data.train_loader(seed=0))).batches[0]
    cross_entropy(model(x), y).backward()
    for trained, start, p in zip(core.model.parameters(), clean, model.parameters(), strict=True):
        assert torch.equal(trained, start.add(p.grad, alpha=-0.5))


@pytest.mark.parametrize("fails", ["edit", "penalty", "gradients"])
def test_edits_are_undone_where_a_plugin_fails(core_of: CoreOf, train: Train, weights: Weights, fails: str) -> None:
    core = core_of(Shake(), Shake(fails=fails, name="broken"), accumulate=2)
    before = weights(core).clone()
    with pytest.raises(ArithmeticError):
        train(core)
    assert torch.equal(weights(core), before)


@pytest.mark.parametrize("error", [ArithmeticError, KeyboardInterrupt, None])
def test_edits_are_undone_where_the_network_fails(
    core_of: CoreOf, train: Train, weights: Weights, error: type[BaseException] | None
) -> None:
    core = core_of(Shake(), kind=type("Broken", (Fails,), {"error": error}))
    before = weights(core).clone()
    ends = {KeyboardInterrupt: SystemExit, None: UserError}  # an epoch in which all batches are skipped ends the run
    with pytest.raises(ends.get(error, error)):  # type: ignore[arg-type]
        train(core)
    assert torch.equal(weights(core), before)


def test_tied_weights_are_moved_once(core_of: CoreOf, train: Train) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    model[1].weight = model[0].weight
    seen: list[Tensor] = []

    class Look(Plugin):
        def penalty(self, step: Any) -> None:
            seen.append(model[0].weight.detach().clone())

    core = core_of(Shake(0.5), Look(), model=model)
    start = model[0].weight.detach().clone()
    train(core, max_steps=1)
    assert torch.equal(seen[0], start + 0.5)


def test_checkpoints_in_the_middle_of_an_epoch_hold_clean_weights(
    core_of: CoreOf, train: Train, weights: Weights, tmp_path: Any
) -> None:
    core = core_of(Shake(), accumulate=2)
    keep = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    train(core, enable_checkpointing=True, callbacks=[keep], max_steps=2)
    saved = torch.load(next(tmp_path.glob("*.ckpt")), weights_only=True)["state_dict"]
    assert torch.equal(
        torch.cat([saved[f"model.{n}"].flatten() for n, _ in core.model.named_parameters()]), weights(core)
    )


# ---- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_asks_no_training_hook(core_of: CoreOf, data: Data) -> None:
    diary = Diary()
    core = core_of(diary)
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    with quiet():
        trainer = pl.Trainer(**options, callbacks=as_callbacks([diary]))
        trainer.validate(core, verbose=False)
        trainer.test(core, verbose=False)
        outputs = torch.cat(trainer.predict(core))
    assert diary.pages_ == ["prepare_model", "attach", *["evaluation_weights"] * 3]
    assert torch.equal(outputs, core.model(data.test[0]))
    assert trainer.callback_metrics == {}


def test_metrics_of_evaluation_are_those_of_the_whole_part(core_of: CoreOf, train: Train, data: Data) -> None:
    core = core_of(Shake(0.01), metrics={"accuracy": MulticlassAccuracy(10, average="micro")})
    trainer = train(core)
    x, y = data.val
    with torch.no_grad():
        expected = cross_entropy(core.model(x), y).item(), (core.model(x).argmax(1) == y).float().mean().item()
    got = trainer.callback_metrics["val/loss"].item(), trainer.callback_metrics["val/accuracy"].item()
    assert got == pytest.approx(expected, rel=1e-6)


def test_without_a_validation_part(core_of: CoreOf, train: Train, data: Data) -> None:
    trainer = train(core_of(data=Data(data.train, batch_size=16)))
    assert "val/loss" not in trainer.callback_metrics
    assert trainer.callback_metrics["train/loss"] > 0


def test_without_a_test_part(core_of: CoreOf, train: Train, data: Data) -> None:
    core = core_of(data=Data(data.train, data.val, batch_size=16))
    with pytest.raises(UserError, match="no test part"):
        train(core).test(core, verbose=False)


# ---- stopping --------------------------------------------------------------------------------------------------------


class Stop(Plugin):
    at: int = 1

    def should_stop(self, metrics: Any) -> bool:
        self.asked_ = [*getattr(self, "asked_", []), dict(metrics)]
        return len(self.asked_) == self.at


def test_one_yes_stops_and_all_are_asked(core_of: CoreOf, train: Train) -> None:
    first, second = Stop(2), Stop(9, name="patient")
    trainer = train(core_of(first, second), max_epochs=5, num_sanity_val_steps=1)
    assert trainer.current_epoch == 2
    assert len(first.asked_) == len(second.asked_) == 2
    assert all("val/loss" in metrics for metrics in first.asked_)


# ---- Lightning's options ---------------------------------------------------------------------------------------------


class Count(Plugin):
    """Counts steps, keeps the samples of each, and validations."""

    def begin_step(self, step: Any) -> None:
        self.steps_ = [*getattr(self, "steps_", []), step.epoch]

    def transform_batch(self, batch: Any, step: Any) -> Any:
        self.seen_ = [*getattr(self, "seen_", []), batch[0].sum().item()]
        return batch

    def should_stop(self, metrics: Any) -> bool:
        self.validated_ = [*getattr(self, "validated_", []), len(self.steps_)]
        return False


@pytest.mark.parametrize(
    ("options", "epochs", "validated"),
    [
        ({"limit_train_batches": 3}, [0] * 3, [3]),
        ({"limit_train_batches": 0.5}, [0] * 3, [3]),
        ({"val_check_interval": 0.5}, [0] * 7, [3, 6]),
        ({"val_check_interval": 2}, [0] * 7, [2, 4, 6]),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7, [14, 28]),
        ({"max_steps": 9, "max_epochs": -1}, [0] * 7 + [1] * 2, [7]),
        ({"limit_val_batches": 0}, [0] * 7, None),
        ({"fast_dev_run": True}, [0], [1]),
        ({"fast_dev_run": 3}, [0] * 3, [3]),
        ({"num_sanity_val_steps": 2}, [0] * 7, [7]),
        ({"max_time": {"seconds": 0}, "max_epochs": 3}, [], None),
        ({"detect_anomaly": True}, [0] * 7, [7]),
        ({"profiler": "simple"}, [0] * 7, [7]),
        ({"deterministic": True}, [0] * 7, [7]),
        ({"barebones": True, "limit_train_batches": 2}, [0] * 2, [2]),
        ({"use_distributed_sampler": False}, [0] * 7, [7]),
    ],
    ids=str,
)
def test_lightnings_options(
    core_of: CoreOf, train: Train, options: dict[str, Any], epochs: list[int], validated: list[int] | None
) -> None:
    count = Count()
    if options.get("barebones"):
        options = {**options, "logger": None, "num_sanity_val_steps": None}
    train(core_of(count), **options)
    assert getattr(count, "steps_", []) == epochs
    assert getattr(count, "validated_", None) == validated


def test_reloading_loaders_changes_no_order(core_of: CoreOf, train: Train) -> None:
    once, reloaded = Count(), Count()
    train(core_of(once), max_epochs=3)
    train(core_of(reloaded), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert once.seen_ == reloaded.seen_
    assert once.seen_[:7] != once.seen_[7:14]


def test_overfitting_takes_the_same_batches_in_each_epoch(core_of: CoreOf, train: Train) -> None:
    count = Count()
    train(core_of(count), max_epochs=3, overfit_batches=2)
    assert len(count.seen_) == 6
    assert count.seen_[:2] == count.seen_[2:4] == count.seen_[4:]


def test_accumulation_by_lightning_itself_is_refused(core_of: CoreOf, train: Train) -> None:
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="accumulate"):
        train(core_of(), accumulate_grad_batches=2)


def test_a_second_fit_of_the_same_core_starts_afresh(core_of: CoreOf, train: Train) -> None:
    count = Count()
    core = core_of(count)
    train(core, max_steps=2)
    first = count.seen_
    count.seen_ = []
    train(core, max_steps=2)
    assert count.seen_ == first
    assert core.at.index == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optimizer_step", "optimizer_step is never called.*write a plugin with make_optimizer"),
        ("training_step", "training_step.*override compute_loss"),
    ],
)
def test_methods_of_lightnings_own_steps_are_refused(name: str, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        type("Own", (Core,), {name: lambda self, batch, batch_idx: None})
