"""A step that is not finite is left out whole, on all ranks alike, and counted."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from framework import Recipe, fit
from framework.cli import main as cli
from framework.data import Data
from framework.engine.core import Core
from framework.errors import NonFiniteError, UserError
from framework.plugin import Plugin
from framework.run.summary import summarize
from framework.testing.invariance import ForkedShards

CoreOf = Callable[..., Core]
Train = Callable[..., pl.Trainer]
Weights = Callable[[Core], Tensor]


def poisoned(data: Data, *samples: int, batch_size: int = 16) -> Data:
    """Return the data with one entry of some training samples' inputs spoiled."""
    x = data.train[0].clone()
    x[list(samples), 5] = math.nan
    return Data((x, data.train[1]), data.val, batch_size=batch_size)


def steps_with(data: Data, *samples: int, size: int = 16) -> set[int]:
    """Return the steps of the first epoch that hold one of the samples."""
    order = data.train_loader(seed=0).permutation().tolist()
    return {order.index(sample) // size for sample in samples}


class Momentum(Plugin):
    """Descends with momentum and a schedule, so that a step that is made and one that is left out differ later on."""

    def make_optimizer(self, groups: Any) -> Any:
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


class Watch(Plugin):
    """Keeps which steps were made."""

    def attach(self, core: Core) -> None:
        self.made_: list[int] = []

    def after_update(self, step: Any) -> None:
        self.made_.append(step.index)


def by_hand(model: nn.Module, data: Data, left_out: set[int], *, accumulate: int = 1) -> Tensor:
    """Return the weights after an epoch with a loop written out that leaves steps out."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step, window in enumerate(data.train_loader(seed=0, accumulate=accumulate)):
        if step in left_out:
            continue
        optimizer.zero_grad()
        for x, y in window.batches:
            share = len(x) / window.total
            (cross_entropy(model(x), y) * share if share != 1.0 else cross_entropy(model(x), y)).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_run_is_the_one_without_these_steps_bit_for_bit(
    core_of: CoreOf, train: Train, weights: Weights, data: Data, mlp: Any, accumulate: int
) -> None:
    bad, watch = poisoned(data, 7, 55), Watch()
    left_out = steps_with(data, 7, 55, size=16 * accumulate)
    core = core_of(Momentum(), watch, data=bad, accumulate=accumulate, on_nonfinite="skip")
    with pytest.warns(UserWarning, match=r"the loss is nan: the input of training sample \d+ is not finite.*skipped"):
        train(core)
    assert torch.equal(weights(core), by_hand(mlp(), bad, left_out, accumulate=accumulate))
    assert core.at.skipped == len(left_out) >= 1
    assert not left_out & set(watch.made_)
    assert core.at.index == core.trainer.global_step == -(-100 // (16 * accumulate))


def test_it_is_reported_once(core_of: CoreOf, train: Train, data: Data) -> None:
    core = core_of(Momentum(), data=poisoned(data, 7, 55), on_nonfinite="skip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(core, max_epochs=2)
    assert sum("is skipped" in str(one.message) for one in caught) == 1
    assert core.at.skipped == 4


def test_without_such_a_step_nothing_differs(core_of: CoreOf, train: Train, weights: Weights) -> None:
    skip, stop = core_of(Momentum(), on_nonfinite="skip"), core_of(Momentum())
    for core in (skip, stop):
        train(core, max_epochs=2)
    assert torch.equal(weights(skip), weights(stop))
    assert skip.recorder.history == stop.recorder.history
    assert skip.at.skipped == 0


def test_running_statistics_means_and_metrics_hold_nothing_of_it(core_of: CoreOf, train: Train, data: Data) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10))
    metrics = {"accuracy": MulticlassAccuracy(10, average="micro")}
    core = core_of(Momentum(), model=model, metrics=metrics, data=poisoned(data, 7), on_nonfinite="skip")
    with pytest.warns(UserWarning, match="step is skipped"):
        train(core)
    assert all(torch.isfinite(buffer).all() for buffer in model.buffers())
    assert model[1].num_batches_tracked == 6
    told = core.recorder.history[-1].metrics
    assert math.isfinite(told["train/loss"]) and math.isfinite(told["val/loss"])
    accuracy = told["train/accuracy"] * (100 - (4 if steps_with(data, 7) == {6} else 16))
    assert accuracy == pytest.approx(round(accuracy), abs=1e-3), "a mean over the samples that were trained on"


def test_an_infinite_term_and_a_gradient_that_is_none(core_of: CoreOf, train: Train, weights: Weights) -> None:
    class Bad(Plugin):
        def penalty(self, step: Any) -> Any:
            return {"inf": torch.tensor(math.inf if step.index == 2 else 0.0)}

        def weight_penalty(self, step: Any) -> None:
            return None

        def weight_penalty_gradient(self, step: Any) -> None:
            if step.index == 4:
                step.optimizer.param_groups[0]["params"][1].grad[3] = math.nan

        def transform_gradients(self, step: Any) -> None:
            self.seen_ = [*getattr(self, "seen_", []), step.index]

    bad, watch = Bad(), Watch()
    core = core_of(Momentum(), bad, watch, on_nonfinite="skip")
    with pytest.warns(UserWarning, match="step 2: penalty/bad/inf is inf; .*this step is skipped"):
        train(core)
    assert core.at.skipped == 2
    assert watch.made_ == bad.seen_ == [0, 1, 3, 5, 6]
    assert torch.isfinite(weights(core)).all()


def test_a_gradient_is_named(core_of: CoreOf, train: Train) -> None:
    class Root(nn.Module):
        """A finite output whose gradient at zero is not."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + (0.0 * self.inner.bias.sum()).abs().sqrt()

    core = core_of(model=Root(), on_nonfinite="skip")
    words = r"step 0: the gradient of 'inner.bias' is not finite, though the loss is; this step is skipped"
    with (
        pytest.warns(UserWarning, match=words),
        pytest.raises(NonFiniteError, match="epoch 0: no step of it was finite"),
    ):
        train(core)
    assert core.at.skipped == 7


def test_averages_and_schedules_wait(core_of: CoreOf, train: Train, data: Data) -> None:
    class Decay(Plugin):
        def make_scheduler(self, optimizer: Any, total_steps: int) -> Any:
            return {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "interval": "step"}

    core = core_of(Momentum(), Decay(), data=poisoned(data, 7), on_nonfinite="skip")
    with pytest.warns(UserWarning, match="step is skipped"):
        train(core)
    assert core.at.optimizer.param_groups[0]["lr"] == 0.1 * 0.5**6
    assert core.at.optimizer.state_dict()["state"]


class Ascent(Plugin):
    """Evaluates the gradient again a little uphill."""

    def second_gradient(self, step: Any, again: Any) -> None:
        weights = [p for p in step.optimizer.param_groups[0]["params"] if p.grad is not None]
        gradients = [p.grad.clone() for p in weights]
        self.asked_ = [*getattr(self, "asked_", []), step.index]
        again(lambda: torch._foreach_add_(step.edits.save(weights), gradients, alpha=0.01))


class Turns(Core):
    """Has a loss that is infinite in one step, in its first or in its second evaluation alone."""

    again: int = 0

    def compute_loss(self, batch: Any) -> Tensor:
        spoiled = self.at.index == 3 and self.at.again == self.again_
        return cross_entropy(self(batch[0]), batch[1]) * (math.inf if spoiled else 1.0)


@pytest.mark.parametrize("again", [0, 1])
def test_second_evaluations(core_of: CoreOf, train: Train, weights: Weights, again: int) -> None:
    kind = type("Turning", (Turns,), {"again_": again})
    ascent, watch = Ascent(), Watch()
    core = core_of(Momentum(), ascent, watch, kind=kind, on_nonfinite="skip")
    with pytest.warns(UserWarning, match="step 3: the loss is inf"):
        train(core)
    assert watch.made_ == [0, 1, 2, 4, 5, 6]
    assert (3 in ascent.asked_) == bool(again)
    assert torch.isfinite(weights(core)).all()
    assert not core.edits.open


def half_precision(scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


def test_a_scaler_still_checks_gradients_itself(core_of: CoreOf, train: Train, weights: Weights, data: Data) -> None:
    """A scale so high that the first gradients overflow: the scaler's own skips are not ours."""

    def trained(part: Data, mode: str) -> tuple[Core, list[int]]:
        watch = Watch()
        core = core_of(Momentum(), watch, data=part, on_nonfinite=mode)
        train(core, plugins=[half_precision(2.0**24)])
        return core, watch.made_

    (stop, made), (skip, made_too) = trained(data, "stop"), trained(data, "skip")
    assert made == made_too and len(made) < 7
    assert skip.at.skipped == 0
    assert torch.equal(weights(stop), weights(skip))
    with pytest.warns(UserWarning, match="step is skipped"):
        bad, _ = trained(poisoned(data, 7), "skip")
    assert bad.at.skipped == 1
    assert torch.isfinite(weights(bad)).all()


# ---- ranks -----------------------------------------------------------------------------------------------------------


class Told(pl.Callback):
    """Fails where ranks skipped other steps or came to other weights."""

    def __init__(self, skipped: int) -> None:
        self._skipped = skipped

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert pl_module.at.skipped == self._skipped
        mine = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        first = mine.clone()
        torch.distributed.broadcast(first, 0)
        assert torch.equal(first, mine)


@pytest.mark.filterwarnings("ignore:.*is skipped")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_leave_out_the_same_steps(
    core_of: CoreOf, train: Train, weights: Weights, data: Data, accumulate: int
) -> None:
    """The samples are one rank's each: the other has nothing that is not finite until gradients are reduced."""

    def trained(size: int, k: int, **options: Any) -> Tensor:
        core = core_of(Momentum(), data=poisoned(data, 7, batch_size=size), accumulate=k, on_nonfinite="skip")
        train(core, precision="64-true", **options)
        return weights(core)

    two = trained(16 // accumulate, accumulate, strategy="ddp_fork", devices=2, callbacks=[Told(1)])
    torch.testing.assert_close(two, trained(32, 1).float(), rtol=1e-7, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*is skipped")
def test_ranks_agree_on_a_term_whose_gradient_shows_nothing(core_of: CoreOf, train: Train, weights: Weights) -> None:
    class Lone(Plugin):
        def penalty(self, step: Any) -> Tensor:
            return torch.tensor(math.inf if step.rank == 1 and step.index in (1, 2) else 0.0)

    core = core_of(Momentum(), Lone(), on_nonfinite="skip")
    train(core, strategy="ddp_fork", devices=2, callbacks=[Told(2)])
    assert torch.isfinite(weights(core)).all()


# ---- what is reported, kept and refused ------------------------------------------------------------------------------


def test_a_run_reports_how_many(recipe: Callable[..., Recipe], data: Data, tmp_path: Path) -> None:
    given = recipe(data=poisoned(data, 7), trainer={"max_epochs": 2, "log_every_n_steps": 1})
    with pytest.warns(UserWarning, match="step is skipped"):
        run = fit(given, logs=tmp_path, on_nonfinite="skip")
    assert (run.status, run.steps, run.skipped) == ("finished", 14, 2)
    told = json.loads((run.folder / "run.json").read_text())
    assert (told["skipped"], told["on_nonfinite"]) == (2, "skip")
    assert "  14 steps (2 skipped, not finite), " in summarize(run)
    kept = torch.load(run.last_checkpoint, weights_only=True)
    assert kept["framework"]["skipped"] == 2
    events = EventAccumulator(str(run.folder)).Reload()
    curve = [(entry.step, entry.value) for entry in events.Scalars("train/skipped_steps")]
    (first,) = (step + 1 for step in steps_with(data, 7))
    assert curve[0] == (first, 1.0) and curve[-1] == (14, 2.0)
    assert all(math.isfinite(entry.value) for entry in events.Scalars("train/loss"))
    assert first not in [entry.step for entry in events.Scalars("train/loss")]


def test_nothing_is_reported_of_runs_that_skipped_nothing(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    run = fit(recipe, logs=tmp_path, on_nonfinite="skip")
    assert run.skipped == 0
    assert "skipped" not in summarize(run)
    assert "train/skipped_steps" not in EventAccumulator(str(run.folder)).Reload().Tags()["scalars"]


def test_the_count_continues_in_a_resumed_run(core_of: CoreOf, train: Train, data: Data, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="step is skipped"):
        trainer = train(core_of(data=poisoned(data, 7), on_nonfinite="skip"))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    core = core_of(data=poisoned(data, 7), on_nonfinite="skip")
    train(core, max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert core.at.skipped == 2


def test_an_epoch_without_a_finite_step_ends_the_run(core_of: CoreOf, train: Train, data: Data) -> None:
    core = core_of(data=poisoned(data, *range(100)), on_nonfinite="skip")
    with (
        pytest.warns(UserWarning, match="step is skipped"),
        pytest.raises(NonFiniteError, match="epoch 0: no step of it was finite, 7 were skipped so far"),
    ):
        train(core, max_epochs=3)


def test_weights_that_are_not_finite_end_the_run_at_once(core_of: CoreOf, train: Train) -> None:
    class Spoil(Plugin):
        def after_update(self, step: Any) -> None:
            if step.index == 2:
                step.optimizer.param_groups[0]["params"][2][0] = math.inf

    with pytest.raises(
        NonFiniteError, match=r"step 3: '2\.weight' is not finite since an earlier update, and skipping"
    ):
        train(core_of(Momentum(), Spoil(), on_nonfinite="skip"))


def test_what_moves_weights_before_it_is_known_is_refused(core_of: CoreOf, train: Train) -> None:
    class Quasi(Plugin):
        def make_optimizer(self, groups: Any) -> Any:
            return torch.optim.LBFGS(groups[0]["params"])

    with pytest.raises(UserError, match="on_nonfinite='skip': LBFGS changes the weights"):
        train(core_of(Quasi(), on_nonfinite="skip"))


def test_sharded_parameters_are_refused(core_of: CoreOf, train: Train) -> None:
    with pytest.raises(Exception, match="on_nonfinite='skip': parameters are sharded across ranks"):
        train(core_of(on_nonfinite="skip"), strategy=ForkedShards(), devices=2)


def test_an_unknown_word_is_an_error(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="on_nonfinite='ignore': must be 'stop' or 'skip'"):
        fit(recipe, logs=None, on_nonfinite="ignore")


RECIPE = """
import torch
from torch import nn
from framework import Data, Recipe

def recipe(wrong: float = 0.0) -> Recipe:
    x, y = torch.randn(24, 3), torch.randn(24, 1)
    x[5] /= wrong
    return Recipe(nn.Linear(3, 1), Data((x, y), batch_size=4), nn.functional.mse_loss, trainer={"max_epochs": 1})
"""


@pytest.mark.filterwarnings("ignore:.*is skipped")
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.py").write_text(RECIPE)
    call = ["fit", str(tmp_path / "wrong.py"), "--logs", str(tmp_path / "logs"), "--trainer.accelerator", "cpu"]
    assert cli.main(call) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the input of training sample 5 is not finite" in error
    assert cli.main([*call, "--on-nonfinite", "skip"]) == 0
    assert "6 steps (1 skipped, not finite)" in capsys.readouterr().out
    assert cli.main([*call, "--on-nonfinite", "jump"]) == 2
    assert "on_nonfinite='jump': must be 'stop' or 'skip'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*is skipped")
def test_a_run_that_stopped_resumes_by_skipping(recipe: Callable[..., Recipe], data: Data, tmp_path: Path) -> None:
    """From its last checkpoint to the bits of a run that skipped from the start."""
    late = next(sample for sample in range(100) if steps_with(data, sample) == {4})

    def poisoned_recipe() -> Recipe:
        return recipe(plugins=[Momentum()], data=poisoned(data, late), trainer={"max_epochs": 2})

    with pytest.raises(NonFiniteError, match="step 4: "):
        fit(poisoned_recipe, logs=tmp_path / "a", checkpoint_steps=1)
    resumed = fit(poisoned_recipe, logs=tmp_path / "a", resume=True, on_nonfinite="skip")
    at_once = fit(poisoned_recipe, logs=tmp_path / "b", on_nonfinite="skip")
    assert (resumed.status, resumed.skipped, resumed.last) == ("finished", 2, at_once.last)
    for one, other in zip(resumed.core.model.parameters(), at_once.core.model.parameters(), strict=True):
        assert torch.equal(one, other)
