"""Resuming: which run, which checkpoint, to the same bits, and what may have changed since."""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.summary.writer import event_file_writer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities import dim_zero_cat

from framework import Core, Data, Plugin, Recipe, Run, fit
from framework.checkpoint import file as checkpoint_file
from framework.checkpoint import saving as checkpoints
from framework.checkpoint.file import read_checkpoint, write_checkpoint
from framework.checkpoint.folder import RunFolder
from framework.checkpoint.resume import run_to_resume, start_of
from framework.checkpoint.saving import Checkpoints
from framework.errors import UserError
from framework.run.result import Interrupted
from plugins.early_stopping import EarlyStopping
from plugins.input_noise import InputNoise
from plugins.mixup import Mixup
from plugins.optimizer import Optimizer
from plugins.schedule import Schedule
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise
from tests.children import at_call, in_child, killed, send
from tests.traces import assert_same, curves_of

MakeRecipe = Callable[..., Recipe]
Make = Callable[..., Recipe]


class Kept(Metric):
    """A metric that keeps a list."""

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.values.append(prediction.max(1).values)

    def compute(self) -> Tensor:
        return dim_zero_cat(self.values).median()


def files_of(folder: Path) -> dict[Path, bytes]:
    """Return the content of every file of a run."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Factor(Plugin):
    """Changes nothing, by settings of its own."""

    factor: float = 1.0

    def after_update(self, step: Any) -> None: ...


class Groups(Plugin):
    """Makes parameter groups, which leave their mark in the optimizer's state."""

    factor: float = 1.0

    def group_parameters(self, groups: Any) -> Any:
        return groups


@pytest.fixture
def make(digits: tuple[Tensor, Tensor]) -> Make:
    """Return a function that makes a recipe of many plugins that draw and keep states, on pictures."""
    x, y = digits[0].view(-1, 1, 8, 8), digits[1]

    def recipe(*more: Plugin, plugins: list[Plugin] | None = None, **options: Any) -> Recipe:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout(0.2), nn.Linear(12, 10))
        drawing = [
            InputNoise(0.1),
            Mixup(0.3, probability=0.5),
            WeightNoise(0.01),
            WeightAverage(decay=0.9),
            Optimizer("AdamW", lr=1e-2),
            Schedule("cosine"),
        ]
        return Recipe(
            model,
            Data((x[:100], y[:100]), (x[100:141], y[100:141]), batch_size=16),
            loss=cross_entropy,
            metrics={"accuracy": MulticlassAccuracy(10, average="micro"), "kept": Kept()},
            plugins=[*(drawing if plugins is None else plugins), *more],
            trainer={
                "max_epochs": 3,
                "log_every_n_steps": 3,
                "enable_progress_bar": False,
                "num_sanity_val_steps": 0,
                "accelerator": "cpu",
                **options,
            },
        )

    return recipe


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a function that runs something once, however often it is asked, and gives the run's folder."""
    known: dict[str, Path] = {}

    def folder(name: str, run: Callable[[Path], object]) -> Path:
        if name not in known:
            logs = tmp_path_factory.mktemp("alone")
            run(logs)
            known[name] = folder_in(logs)
        return known[name]

    return folder


def folder_in(logs: Path) -> Path:
    return logs / "recipe" / "version_0"


def kept_in(logs: Path) -> Path:
    return folder_in(logs) / "checkpoints"


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def record_of(logs: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder_in(logs) / "run.json").read_text())
    return record


def weights(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.core.model.parameters()])


# ---- the same bits ---------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "validated within": {"val_check_interval": 3},
    "validated each step": {"val_check_interval": 1, "max_epochs": 2},
    "validated over epochs": {"val_check_interval": 4, "check_val_every_n_epoch": None},
    "validated seldom": {"check_val_every_n_epoch": 2},
    "accumulated": {"accumulate_grad_batches": 3},
    "steps": {"max_steps": 17, "max_epochs": -1},
    "cut": {"limit_train_batches": 4, "limit_val_batches": 2},
    "checked": {"num_sanity_val_steps": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("every", [None, 2])
def test_a_run_that_was_killed_leaves_what_one_left_alone_does(
    make: Make, name: str, every: int | None, left_alone: Any, tmp_path: Path
) -> None:
    def run(logs: Path, **more: Any) -> Run:
        return fit(make(**OPTIONS[name]), logs=logs, checkpoint_steps=every, **more)

    alone = left_alone(name, run)
    steps = json.loads((alone / "run.json").read_text())["steps"]
    killed(lambda: run(tmp_path), Core, "training_step", steps - 2)
    run(tmp_path, resume=True)
    assert_same(alone, folder_in(tmp_path))


MOMENTS: list[tuple[Any, str, int, bool]] = [
    (Core, "training_step", 8, False),  # at an epoch's start
    (Core, "compute_loss", 12, False),
    (Core, "validation_step", 5, True),
    (Core, "on_validation_epoch_end", 2, True),
    (Core, "on_train_epoch_end", 2, False),
    (Core, "on_train_epoch_end", 2, True),
    (checkpoint_file, "write_checkpoint", 4, False),
    (os, "fsync", 5, False),
    (Checkpoints, "_name_it", 4, False),
    (checkpoints, "link", 2, False),
    (Path, "replace", 14, False),
    (Path, "replace", 15, False),
    (Path, "replace", 16, False),
    (Path, "replace", 17, False),
    (Path, "replace", 18, False),
    (Core, "teardown", 1, False),  # after the last checkpoint
]


@pytest.mark.parametrize(("owner", "name", "times", "after"), MOMENTS)
def test_it_may_be_killed_at_any_moment(
    make: Make, owner: Any, name: str, times: int, after: bool, left_alone: Any, tmp_path: Path
) -> None:
    def run(logs: Path, **more: Any) -> Run:
        return fit(make(), logs=logs, checkpoint_steps=3, checkpoint_seconds=0, **more)

    alone = left_alone("plain", run)
    killed(lambda: run(tmp_path), owner, name, times, after=after)
    run(tmp_path, resume=True)
    assert_same(alone, folder_in(tmp_path))
    assert not list(kept_in(tmp_path).glob(".*"))
    assert not (kept_in(tmp_path) / "next.ckpt").exists()


SELDOM: list[tuple[Any, str, int, bool]] = [
    (Core, "training_step", 10, False),
    (Core, "training_step", 20, False),  # with a best epoch in memory
    (Checkpoints, "_hold", 1, True),
    (Checkpoints, "_write_held", 1, False),
    (Checkpoints, "_call_best", 1, False),
    (Checkpoints, "_call_best", 1, True),  # the best is written, the last is not
    (Checkpoints, "_name_it", 2, False),
    (Checkpoints, "_name_it", 2, True),
]


@pytest.mark.parametrize(("owner", "name", "times", "after"), SELDOM)
@pytest.mark.parametrize("within", [{}, {"val_check_interval": 3}])
def test_it_may_be_killed_where_files_are_seldom(
    make: Make,
    owner: Any,
    name: str,
    times: int,
    after: bool,
    within: dict[str, Any],
    left_alone: Any,
    tmp_path: Path,
) -> None:
    def run(logs: Path, **more: Any) -> Run:
        return fit(make(**within, max_epochs=4), logs=logs, checkpoint_seconds=600, checkpoint_steps=17, **more)

    alone = left_alone(f"seldom {within}", run)
    if within:  # not before the first file
        times += {"_hold": 2, "_write_held": 1, "_call_best": 1}.get(name, 0)
    killed(lambda: run(tmp_path), owner, name, times, after=after)
    run(tmp_path, resume=True)
    assert_same(alone, folder_in(tmp_path))
    assert not (kept_in(tmp_path) / "next.ckpt").exists()


def test_it_may_be_killed_again_and_again(
    make: Make, left_alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(**more: Any) -> Run:
        # each in a second of its own, by which TensorBoard reads files in order
        monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: 1e9 + len(steps)))
        return fit(make(), logs=tmp_path, checkpoint_steps=2, **more)

    steps: list[int] = []
    killed(run, Core, "training_step", 5)
    while not steps or steps[-1] < 18:
        steps.append(read_checkpoint(kept_in(tmp_path) / "last.ckpt")["global_step"])
        if steps[-1] < 18:
            killed(lambda: run(resume=True), Core, "training_step", 4)
    assert run(resume=True).status == "finished"
    assert_same(left_alone("plain", lambda logs: fit(make(), logs=logs)), folder_in(tmp_path))
    told = record_of(tmp_path)["resumed"]
    assert [one["step"] for one in told] == steps
    assert [set(one) for one in told] == [{"step", "epoch", "checkpoint", "differs"}] * len(steps)


@pytest.mark.parametrize("lost", [("last",), ("last", "previous")])
@pytest.mark.parametrize("within", [{}, {"val_check_interval": 3}])
def test_it_resumes_from_an_older_file_where_newer_ones_are_damaged(
    make: Make,
    lost: tuple[str, ...],
    within: dict[str, Any],
    left_alone: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    alone = left_alone("validated within" if within else "plain", lambda logs: fit(make(**within), logs=logs))
    killed(lambda: fit(make(**within), logs=tmp_path, checkpoint_steps=2), Core, "training_step", 19)
    for name in lost:
        damage(kept_in(tmp_path) / f"{name}.ckpt")
    with caplog.at_level("INFO", "pytorch_lightning"):
        fit(make(**within), logs=tmp_path, resume=True)
    source = "best.ckpt" if len(lost) == 2 else "previous.ckpt"
    lines = [line for line in caplog.messages if "damaged, or not a checkpoint" in line]
    assert len(lines) == len(lost)
    assert all("\n" not in line and line.endswith(f"; resuming from {source} instead") for line in lines)
    assert record_of(tmp_path)["resumed"][0]["checkpoint"] == source
    assert_same(alone, folder_in(tmp_path))


def test_curves_have_no_step_twice_and_none_left_out(make: Make, tmp_path: Path) -> None:
    killed(lambda: fit(make(), logs=tmp_path, trainer={"log_every_n_steps": 1}), Core, "training_step", 13)
    fit(make(), logs=tmp_path, resume=True)
    curves = curves_of(folder_in(tmp_path))
    assert [step for step, _ in curves["./scalars/train/loss"]] == list(range(1, 22))
    assert [step for step, _ in curves["./scalars/val/loss"]] == [7, 14, 21]
    assert [step for step, _ in curves["./histograms/weights/1"]] == [0, 21]
    assert [step for step, _ in curves["./images/inputs/augmented"]] == [0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_nothing_is_lost(make: Make, number: int, left_alone: Any, tmp_path: Path) -> None:
    def stop() -> None:
        at_call(Core, "training_step", 10, send(number))
        with pytest.raises(Interrupted):
            fit(make(), logs=tmp_path)

    assert in_child(stop) == 0
    assert record_of(tmp_path)["status"] == "interrupted"
    fit(make(), logs=tmp_path, resume=True)
    assert record_of(tmp_path)["resumed"][0]["step"] == 10
    assert_same(left_alone("plain", lambda logs: fit(make(), logs=logs)), folder_in(tmp_path))


def test_steps_that_were_left_out_are_counted_on(make: Make, tmp_path: Path) -> None:
    class Breaks(Plugin):
        def penalty(self, step: Any) -> Tensor:
            return torch.tensor(float("nan") if step.index in (2, 9) else 0.0)

    def run(logs: str, **more: Any) -> Run:
        return fit(make(Breaks()), logs=tmp_path / logs, on_nonfinite="skip", checkpoint_steps=4, **more)

    with pytest.warns(UserWarning, match="this step is skipped"):
        assert run("a").skipped == 2
    killed(lambda: [pytest.warns(UserWarning, match="step is skipped").__enter__(), run("b")], Core, "training_step", 7)
    resumed = run("b", resume=True)  # the second one is counted alone, as it would have been
    assert resumed.skipped == 2
    assert_same(folder_in(tmp_path / "a"), folder_in(tmp_path / "b"))


def test_a_plateau_waits_on(make: Make, tmp_path: Path) -> None:
    def run(logs: str, **more: Any) -> Run:
        plateau = Schedule("plateau", monitor="train/loss", options={"patience": 0, "threshold": 10.0})
        return fit(make(plugins=[Optimizer("SGD", lr=0.1), plateau]), logs=tmp_path / logs, **more)

    run("a", trainer={"max_epochs": 5})
    killed(lambda: run("b", trainer={"max_epochs": 5}), Core, "training_step", 24)
    run("b", resume=True)
    assert_same(folder_in(tmp_path / "a"), folder_in(tmp_path / "b"))
    rates = [value["value"] for _, value in curves_of(folder_in(tmp_path / "b"))["./scalars/lr"]]
    assert len(set(rates)) > 2


# ---- stopped by a plugin, and later phases ---------------------------------------------------------------------------


@pytest.mark.parametrize("option", [{}, {"val_check_interval": 3}])
def test_a_run_that_was_stopped_stays_so_where_it_was_killed_before_its_end(
    make: Make, option: dict[str, Any], tmp_path: Path
) -> None:
    def run(logs: str, **more: Any) -> Run:
        stopping = EarlyStopping(patience=1, min_delta=10.0)
        return fit(make(stopping, **option, max_epochs=9), logs=tmp_path / logs, **more)

    alone = run("a")
    assert (alone.status, alone.epochs < 4) == ("stopped", True)
    killed(lambda: run("b"), Core, "teardown", 1)
    assert record_of(tmp_path / "b")["status"] == "running"
    resumed = run("b", resume=True)
    assert resumed.status == "stopped"
    assert torch.equal(weights(resumed), weights(alone))
    assert_same(folder_in(tmp_path / "a"), folder_in(tmp_path / "b"))


def phased(make: Make, then: str) -> Recipe:
    """Return a recipe with a later phase of some twenty steps: the validation part's classes are none of its own."""
    stopping = EarlyStopping(patience=9, then=then, max_extra_epochs=2)
    made = make(stopping, plugins=[WeightNoise(0.01), Optimizer("AdamW", lr=3e-3)])
    x, y = made.data.val
    made.data.val = (x, y.flip(0))
    return made


PHASES = [
    (Core, "training_step", 21 + 2),  # before its first checkpoint
    (Core, "training_step", 21 + 8),
    (Core, "training_step", 21 + 13),
    (RunFolder, "hand_over", 1),
    (RunFolder, "update", 1),
]


@pytest.mark.parametrize("then", ["retrain", "continue"])
@pytest.mark.parametrize(("owner", "name", "times"), PHASES)
def test_a_run_that_was_killed_in_a_later_phase(
    make: Make, then: str, owner: Any, name: str, times: int, left_alone: Any, tmp_path: Path
) -> None:
    def run(logs: Path, **more: Any) -> Run:
        return fit(phased(make, then), logs=logs, checkpoint_steps=6, **more)

    alone = left_alone(then, run)
    (phase,) = json.loads((alone / "run.json").read_text())["phases"]
    assert (phase["name"], phase["steps"] > 13) == (then, True)
    killed(lambda: run(tmp_path), owner, name, times)
    run(tmp_path, resume=True)
    assert_same(alone, folder_in(tmp_path))


@pytest.mark.parametrize("then", ["retrain", "continue"])
def test_after_more_epochs_a_phase_starts_from_the_beginning(make: Make, then: str, tmp_path: Path) -> None:
    def run(logs: str, epochs: int, **more: Any) -> Run:
        return fit(phased(make, then), logs=tmp_path / logs, trainer={"max_epochs": epochs}, **more)

    run("a", 4)
    run("b", 3)
    run("b", 4, resume=folder_in(tmp_path / "b"))
    assert_same(folder_in(tmp_path / "a"), folder_in(tmp_path / "b"))


def test_a_phase_whose_files_are_damaged_starts_from_the_beginning(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(logs: str, **more: Any) -> Run:
        stopping = EarlyStopping(patience=9, then="retrain")
        return fit(make(stopping, plugins=[]), logs=tmp_path / logs, **more)

    run("a")
    killed(lambda: run("b"), Core, "training_step", 21 + 12)
    damage(kept_in(tmp_path / "b") / "retrain.ckpt")
    with caplog.at_level("INFO", "pytorch_lightning"):
        run("b", resume=True)
    assert any(line.endswith("; starting the phase again instead") for line in caplog.messages)
    assert_same(folder_in(tmp_path / "a"), folder_in(tmp_path / "b"))


# ---- which run -------------------------------------------------------------------------------------------------------


def test_the_last_unfinished_run_is_found(make: Make, tmp_path: Path) -> None:
    for _ in range(3):
        killed(lambda: fit(make(), logs=tmp_path), Core, "training_step", 9)
    fit(make(), logs=tmp_path)
    (tmp_path / "recipe" / "version_9").mkdir()  # of a process that was killed in that very moment
    names = []
    for _ in range(3):
        names.append(fit(make(), logs=tmp_path, resume=True).folder.name)  # type: ignore[union-attr]
    assert names == ["version_2", "version_1", "version_0"]
    with pytest.raises(UserError, match=r"--resume: no run of 'recipe' in .* is unfinished; leave --resume out"):
        fit(make(), logs=tmp_path, resume=True)


def test_a_run_is_named(make: Make, tmp_path: Path) -> None:
    for _ in range(2):
        killed(lambda: fit(make(), logs=tmp_path), Core, "training_step", 9)
    run = fit(make(), logs="elsewhere", resume=folder_in(tmp_path))
    assert run.folder == folder_in(tmp_path)
    assert record_of(tmp_path)["status"] == "finished"
    assert not Path("elsewhere").exists()


def test_without_any_run(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run of 'recipe' in .* is unfinished"):
        fit(make(), logs=tmp_path, resume=True)
    with pytest.raises(UserError, match=r"is not a run's folder: it has no run.json"):
        fit(make(), logs=tmp_path, resume=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_recipe(make: Make, recipe: MakeRecipe, tmp_path: Path) -> None:
    fit(recipe, logs=tmp_path)
    with pytest.raises(UserError, match=r"a run of the recipe 'digits_mlp', not of 'recipe'"):
        fit(make(), logs=tmp_path, resume=tmp_path / "digits_mlp" / "version_0")


def test_a_run_that_was_killed_before_its_first_checkpoint(make: Make, tmp_path: Path) -> None:
    killed(lambda: fit(make(), logs=tmp_path), Core, "training_step", 3)
    with pytest.raises(UserError, match=r"version_0: this run ended before its first checkpoint; leave --resume out"):
        fit(make(), logs=tmp_path, resume=True)
    assert fit(make(), logs=tmp_path).folder == tmp_path / "recipe" / "version_1"


def test_a_run_without_any_usable_checkpoint(make: Make, tmp_path: Path) -> None:
    killed(lambda: fit(make(), logs=tmp_path, checkpoint_seconds=0), Core, "training_step", 17)
    for path in kept_in(tmp_path).iterdir():
        damage(path)
    before = record_of(tmp_path)
    with pytest.raises(UserError, match=r"no usable checkpoint to resume from: .*last.ckpt: .*previous.ckpt") as caught:
        fit(make(), logs=tmp_path, resume=True)
    assert "\n" not in str(caught.value)
    assert record_of(tmp_path) == before
    assert in_child(RunFolder(folder_in(tmp_path)).hold) == 0, "nobody holds it"


def test_a_file_of_someone_elses_is_passed_over(make: Make, tmp_path: Path) -> None:
    killed(lambda: fit(make(), logs=tmp_path, checkpoint_seconds=0), Core, "training_step", 17)
    content = read_checkpoint(kept_in(tmp_path) / "last.ckpt")
    del content["callbacks"]["checkpoints"]
    write_checkpoint(content, kept_in(tmp_path) / "last.ckpt")
    start = start_of(RunFolder(folder_in(tmp_path)))
    assert start is not None
    assert (start.path.name, start.step) == ("previous.ckpt", 7)
    assert start.skipped[0].endswith("not written by a run")


def test_a_run_that_is_being_trained_is_left_alone(make: Make, tmp_path: Path) -> None:
    killed(lambda: fit(make(), logs=tmp_path), Core, "training_step", 9)

    def second() -> None:
        with pytest.raises(UserError, match=r"version_0: another process is training this run; stop it first"):
            fit(make(), logs=tmp_path, resume=True)

    codes = []

    class Meanwhile(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, core: pl.LightningModule, *_: Any) -> None:
            if core.at.index == 12:  # type: ignore[union-attr]
                files = sorted(path.name for path in folder_in(tmp_path).rglob("*"))
                codes.append(in_child(second))
                assert files == sorted(path.name for path in folder_in(tmp_path).rglob("*"))

    fit(make(), logs=tmp_path, resume=True, trainer={"callbacks": [Meanwhile()]})
    fit(make(), logs=tmp_path / "a")
    assert codes == [0]
    assert_same(folder_in(tmp_path / "a"), folder_in(tmp_path))


def test_what_cannot_be_ordered_together(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give either resume or weights"):
        fit(make(), logs=tmp_path, resume=True, weights="x.ckpt")
    with pytest.raises(UserError, match="resume=True, logs=None: give logs"):
        fit(make(), logs=None, resume=True)


# ---- finished runs ---------------------------------------------------------------------------------------------------


def test_a_finished_run_takes_more_epochs(make: Make, tmp_path: Path) -> None:
    plugins = {"plugins": [WeightNoise(0.01), WeightAverage(decay=0.9)]}  # a cosine would end elsewhere
    fit(make(**plugins), logs=tmp_path / "b", trainer={"max_epochs": 2})
    with pytest.raises(UserError, match=r"this run has ended \(finished\); to train it further, give --trainer"):
        fit(make(**plugins), logs=tmp_path / "b", resume=folder_in(tmp_path / "b"))
    run = fit(make(**plugins), logs=tmp_path / "b", resume=folder_in(tmp_path / "b"), trainer={"max_epochs": 4})
    alone = fit(make(**plugins), logs=tmp_path / "a", trainer={"max_epochs": 4})
    assert run.epochs == 4
    assert torch.equal(weights(run), weights(alone))
    resumed = run.core.recorder.history  # the best and the last entry of before, and those since
    assert resumed == alone.core.recorder.history[-len(resumed) :]
    assert len(resumed) >= 3 and run.metrics == alone.metrics and run.last == alone.last
    assert record_of(tmp_path / "b")["resumed"][0]["differs"] == ["trainer.max_epochs: 2 → 4"]
    losses = [curves_of(folder_in(tmp_path / name))["./scalars/train/loss"] for name in "ab"]
    assert losses[0] == losses[1]


class Refuses(pl.Callback):
    """Refuses as training starts, after the checkpoint is restored."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        raise UserError("refused at the start")


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ({"max_epochs": 1}, "current_epoch"),
        ({"max_epochs": 4, "callbacks": [Refuses()]}, "refused at the start"),
        ({"max_epochs": 4, "precision": "no"}, "precision"),
    ],
)
def test_a_refused_resume_changes_nothing(make: Make, order: dict[str, Any], told: str, tmp_path: Path) -> None:
    plugins = {"plugins": [EarlyStopping(patience=5, then="retrain")]}  # the later phase hands its best over
    fit(make(**plugins), logs=tmp_path, trainer={"max_epochs": 3})
    before = files_of(folder_in(tmp_path))
    with pytest.raises(UserError, match=told):
        fit(make(**plugins), logs=tmp_path, resume=folder_in(tmp_path), trainer=order)
    assert files_of(folder_in(tmp_path)) == before


@pytest.mark.parametrize(("first", "second"), [(11, 13), (11, 20), (10, 17), (14, 15), (17, -1)])
def test_a_run_that_ended_by_steps_takes_more(make: Make, first: int, second: int, tmp_path: Path) -> None:
    def run(logs: str, steps: int, **more: Any) -> Run:
        return fit(make(plugins=[WeightNoise(0.01)]), logs=tmp_path / logs, trainer={"max_steps": steps}, **more)

    run("b", first)
    resumed, alone = run("b", second, resume=folder_in(tmp_path / "b")), run("a", second)
    assert torch.equal(weights(resumed), weights(alone))
    assert (resumed.steps, resumed.epochs) == (alone.steps, alone.epochs)


def test_a_run_that_ended_by_time_takes_more(make: Make, tmp_path: Path) -> None:
    limit = {"max_epochs": 3, "max_time": datetime.timedelta(microseconds=1)}
    first = fit(make(), logs=tmp_path, trainer=limit)
    assert first.steps < 7
    alone = fit(make(), logs=None)
    run = fit(make(), logs=tmp_path, resume=folder_in(tmp_path), trainer={"max_time": datetime.timedelta(hours=1)})
    assert (run.status, run.steps) == ("finished", 21)
    assert torch.equal(weights(run), weights(alone))


def test_more_patience_is_heard(make: Make, tmp_path: Path) -> None:
    def run(patience: int, **more: Any) -> Run:
        return fit(make(EarlyStopping(patience=patience, min_delta=10.0), max_epochs=5), logs=tmp_path, **more)

    assert run(1).epochs == 2
    again = run(3, resume=folder_in(tmp_path))
    assert (again.status, again.epochs) == ("stopped", 4)


# ---- what differs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cut_off(make: Make, tmp_path: Path) -> Path:
    """Return the folder of all runs, with one that was killed in its second epoch."""
    killed(lambda: fit(make(Factor(), Groups()), logs=tmp_path), Core, "training_step", 10)
    return tmp_path


BREAKING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another seed": ({}, {"seed": 3}, "seed: 0 → 3"),
    "a plugin less": ({}, {"without": ["input_noise"]}, "plugins: input_noise, mixup, .* → mixup, "),
    "a plugin more": ({}, {"with_": [("hidden_noise", {"layers": "Linear"})]}, "plugins: .*groups → .*, hidden_noise"),
    "the optimizer's setting": ({}, {"settings": {"optimizer.lr": 0.5}}, "optimizer.lr: 0.01 → 0.5"),
    "the schedule": ({}, {"settings": {"schedule.kind": "constant"}}, "schedule.kind: cosine → constant"),
    "groups": ({}, {"settings": {"groups.factor": 2.0}}, "groups.factor: 1.0 → 2.0"),
}


@pytest.mark.parametrize("name", BREAKING)
def test_what_gives_the_checkpoint_another_meaning_is_refused(make: Make, name: str, cut_off: Path) -> None:
    options, order, told = BREAKING[name]
    before = {path: path.read_bytes() for path in folder_in(cut_off).rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=told) as caught:
        fit(make(Factor(), Groups(), **options), logs=cut_off, resume=True, **order)
    best = kept_in(cut_off) / "best.ckpt"
    assert f"start a new run from its weights: --weights {best}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == {path: path.read_bytes() for path in folder_in(cut_off).rglob("*") if path.is_file()}
    again = fit(make(Factor(), Groups(), **options), logs=cut_off, weights=best, **order)
    assert again.folder == cut_off / "recipe" / "version_1"


def test_the_order_of_plugins_is_refused(make: Make, cut_off: Path) -> None:
    made = make(Factor(), Groups())
    made.plugins.reverse()
    with pytest.raises(UserError, match=r"plugins: input_noise, .* → groups, factor, .*the checkpoint does not fit"):
        fit(made, logs=cut_off, resume=True)


def test_another_class_of_the_same_name_is_refused(make: Make, cut_off: Path) -> None:
    with pytest.raises(UserError, match=r"factor: .*Factor → .*Groups"):
        fit(make(Groups(name="factor"), Groups()), logs=cut_off, resume=True)


def test_another_network_is_refused(make: Make, cut_off: Path) -> None:
    made = make(Factor(), Groups())
    made.model[4] = nn.Linear(12, 11)
    with pytest.raises(UserError, match=r"weights: \d+ → \d+: the checkpoint does not fit these changes"):
        fit(made, logs=cut_off, resume=True)


def test_another_network_with_as_many_weights_is_reported(make: Make, cut_off: Path) -> None:
    made = make(Factor(), Groups())
    made.model.insert(1, nn.Identity())
    with pytest.raises(UserError, match=r"the checkpoint does not fit this network: .*model.2.weight") as caught:
        fit(made, logs=cut_off, resume=True)
    assert "\n" not in str(caught.value)
    assert fit(make(Factor(), Groups()), logs=cut_off, resume=True).status == "finished"


def test_another_core_is_refused(make: Make, cut_off: Path) -> None:
    class Other(Core):
        """Another objective."""

    made = make(Factor(), Groups())
    made.core = Other
    with pytest.raises(UserError, match=r"core: framework.Core → .*Other"):
        fit(made, logs=cut_off, resume=True)


HARMLESS: dict[str, tuple[dict[str, Any], str]] = {
    "more epochs": ({"trainer": {"max_epochs": 4}}, "trainer.max_epochs: 3 → 4"),
    "another logger": ({"trainer": {"logger": False}}, "trainer.logger: None → False"),
    "how often is logged": ({"trainer": {"log_every_n_steps": 1}}, "trainer.log_every_n_steps: 3 → 1"),
    "a plugin's strength": ({"settings": {"factor.factor": 0.5}}, "factor.factor: 1.0 → 0.5"),
    "noise": ({"settings": {"weight_noise.std": 0.5}}, "weight_noise.std: 0.01 → 0.5"),
    "what to do with steps": ({"on_nonfinite": "skip"}, "on_nonfinite: stop → skip"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_is_listed(make: Make, name: str, cut_off: Path, caplog: pytest.LogCaptureFixture) -> None:
    order, told = HARMLESS[name]
    with caplog.at_level("INFO", "pytorch_lightning"):
        run = fit(make(Factor(), Groups()), logs=cut_off, resume=True, **order)
    assert run.status == "finished"
    assert f"  changed since the run was started: {told}" in caplog.messages
    assert record_of(cut_off)["resumed"] == [{"step": 7, "epoch": 1, "checkpoint": "last.ckpt", "differs": [told]}]


def test_what_was_ordered_before_is_ordered_again(make: Make, tmp_path: Path) -> None:
    order = {"seed": 4, "trainer": {"max_epochs": 2}, "settings": {"weight_noise.std": 0.1}, "without": ["mixup"]}
    alone = fit(make(), logs=tmp_path / "a", **order)
    killed(lambda: fit(make(), logs=tmp_path / "b", **order), Core, "training_step", 9)
    assert torch.equal(weights(fit(make(), logs=tmp_path / "b", resume=True)), weights(alone))


def test_versions_and_sizes_that_differ_are_listed(make: Make, cut_off: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = record_of(cut_off)
    installed, record["versions"]["torch"] = record["versions"]["torch"], "1.0"
    record["samples"] = 17
    record["monitor"] = "train/loss"
    (folder_in(cut_off) / "run.json").write_text(json.dumps(record))
    with caplog.at_level("INFO", "pytorch_lightning"):
        fit(make(Factor(), Groups()), logs=cut_off, resume=True)
    for told in (f"torch: 1.0 → {installed}", "samples: 17 → 100", "monitor: train/loss → val/loss"):
        assert any(line.endswith(f"started: {told}") for line in caplog.messages), told


RECIPE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, Recipe


def recipe(width: int = 6, widths: tuple[int, ...] = (4, 4)) -> Recipe:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    data = Data(*2 * [(x, (x.sum(1) > 0).long())], batch_size=8)
    layers = [nn.Linear(a, b) for a, b in zip((4, *widths), (*widths, width), strict=True)]
    options = {"max_epochs": 3, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0}
    return Recipe(nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, 2)), data, loss=cross_entropy, trainer=options)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.py"
    path.write_text(RECIPE)
    return path


def test_a_recipe_file_with_parameters(file: Path, tmp_path: Path) -> None:
    alone = fit(file, logs=tmp_path / "a", parameters={"width": 5})
    killed(lambda: fit(file, logs=tmp_path / "b", parameters={"width": 5}), Core, "training_step", 12)
    assert torch.equal(weights(fit(file, logs=tmp_path / "b", resume=True)), weights(alone))


def test_a_text_that_changed_is_reported(file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    killed(lambda: fit(file, logs=tmp_path), Core, "training_step", 12)
    file.write_text(RECIPE + "\n# a word more\n")
    with caplog.at_level("INFO", "pytorch_lightning"):
        run = fit(file, logs=tmp_path, resume=True)
    kept = tmp_path / "toy" / "version_0" / "recipe.py"
    told = [line for line in caplog.messages if "changed since" in line]
    assert told == [f"  changed since the run was started: {file}: not the same text as its copy {kept}"]
    assert kept.read_text() == RECIPE
    assert run.status == "finished"


def test_a_parameter_that_makes_another_network_is_refused(file: Path, tmp_path: Path) -> None:
    killed(lambda: fit(file, logs=tmp_path), Core, "training_step", 12)
    with pytest.raises(UserError, match=r"weights: \d+ → \d+"):
        fit(file, logs=tmp_path, parameters={"width": 7}, resume=True)
    assert fit(file, logs=tmp_path, resume=True).recipe.parameters["width"] == 6


# ---- another number of samples a step --------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"batch_size": 8}, {"batch_size": 25}])
def test_another_batch_size_from_an_epochs_start_on(make: Make, change: dict[str, int], tmp_path: Path) -> None:
    killed(lambda: fit(make(plugins=[]), logs=tmp_path), Core, "training_step", 10)
    made = make(plugins=[])
    made.data.batch_size = change["batch_size"]
    run = fit(made, logs=tmp_path, resume=True)
    assert run.steps == 7 + 2 * -(-100 // change["batch_size"])
    assert record_of(tmp_path)["resumed"][0]["differs"] == [f"batch_size: 16 → {change['batch_size']}"]


def test_another_batch_size_is_refused_within_an_epoch(make: Make, tmp_path: Path) -> None:
    killed(lambda: fit(make(plugins=[]), logs=tmp_path, checkpoint_steps=2), Core, "training_step", 10)
    made = make(plugins=[])
    made.data.batch_size = 8
    told = r"within an epoch of 16 samples a step, but this run takes 8; to resume, keep batch_size x accumulate_grad"
    before = files_of(folder_in(tmp_path))
    with pytest.raises(UserError, match=told):
        fit(made, logs=tmp_path, resume=True)
    assert files_of(folder_in(tmp_path)) == before
    assert fit(make(plugins=[]), logs=tmp_path, resume=True).status == "finished"


def test_micro_batches_in_place_of_a_batch_resume_within_an_epoch(make: Make, tmp_path: Path) -> None:
    alone = fit(make(plugins=[Optimizer("SGD", lr=0.1)]), logs=None)
    killed(
        lambda: fit(make(plugins=[Optimizer("SGD", lr=0.1)]), logs=tmp_path, checkpoint_steps=2),
        Core,
        "training_step",
        10,
    )
    made = make(plugins=[Optimizer("SGD", lr=0.1)])
    made.data.batch_size = 8
    run = fit(made, logs=tmp_path, resume=True, trainer={"accumulate_grad_batches": 2})
    assert run.steps == alone.steps


@pytest.mark.skipif(sys.platform != "linux", reason="ranks are forked")
def test_two_ranks_take_over_from_one(make: Make, tmp_path: Path) -> None:
    """Half a batch each: the sums of a step are rounded otherwise, and nothing else differs."""
    plain = {"plugins": [Optimizer("SGD", lr=0.1)]}

    def without_draws() -> Recipe:
        made = make(**plain)
        made.model = nn.Sequential(
            *(layer for layer in made.model if not isinstance(layer, nn.Dropout | nn.BatchNorm1d))
        )
        return made

    alone = fit(without_draws(), logs=tmp_path / "a")
    for logs, every, name in (("b", None, "epoch"), ("c", 2, "within")):
        killed(lambda: fit(without_draws(), logs=tmp_path / logs, checkpoint_steps=every), Core, "training_step", 10)  # noqa: B023
        made = without_draws()
        made.data.batch_size = 8
        two = {"strategy": "ddp_fork", "devices": 2, "callbacks": []}
        run = fit(made, logs=tmp_path / logs, resume=True, trainer=two)
        torch.testing.assert_close(weights(run), weights(alone), rtol=1e-4, atol=1e-5, msg=name)


# ---- ranks -----------------------------------------------------------------------------------------------------------


def test_a_rank_resumes_the_run_of_rank_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEWORK_RUN_FOLDER", str(tmp_path / "this"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_to_resume(None, tmp_path, "recipe").path == tmp_path / "this"
    assert run_to_resume(tmp_path / "that", tmp_path, "recipe").path == tmp_path / "this"
