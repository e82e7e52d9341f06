"""When checkpoints are written, and which ones are kept."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from framework import Core, Plugin, Recipe, Run, fit
from framework.checkpoint import file as checkpoint_file
from framework.checkpoint import held, signals
from framework.checkpoint import saving as checkpoints
from framework.checkpoint.file import read_checkpoint
from framework.data import Data
from framework.errors import NonFiniteError, UserError
from plugins.optimizer import Optimizer

MakeRecipe = Callable[..., Recipe]


class Files(pl.Callback):
    """Keeps which files there are before each step and at the end, with the steps that each is of, where that changed.

    Args:
        logs: folder of all runs, whose first run of a recipe from Python this is.
    """

    def __init__(self, logs: Path) -> None:
        self.folder = logs / "recipe" / "version_0" / "checkpoints"
        self.seen: list[dict[str, int]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        found = {path.stem: read_checkpoint(path)["global_step"] for path in sorted(self.folder.glob("*"))}
        if not self.seen or self.seen[-1] != found:
            self.seen.append(found)

    on_fit_end = on_train_batch_start

    def steps(self, name: str = "last") -> list[int]:
        """Return the steps that a file was of, one after another."""
        every = [found[name] for found in self.seen if name in found]
        return [step for step, _ in itertools.groupby(every)]


class Scripted(Metric):
    """A metric with values that were made up, one for each time it is asked."""

    full_state_update = False
    values: tuple[float, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def update(self, *_: Any) -> None: ...

    def compute(self) -> Tensor:
        self.asked += 1
        return torch.tensor(self.values[self.asked - 1])


def scripted(*numbers: float) -> dict[str, Metric]:
    class Numbers(Scripted):
        values = numbers

    return {"score": Numbers()}


def step_of(path: Path | None) -> int:
    assert path is not None
    step: int = read_checkpoint(path)["global_step"]
    return step


def best_entry(run: Run) -> Any:
    choose = min if run.recipe.mode == "min" else max
    known = [one for one in run.core.recorder.history if run.recipe.monitor in one.metrics]
    return choose(known, key=lambda one: one.metrics[run.recipe.monitor])


# ---- by epoch --------------------------------------------------------------------------------------------------------


def test_last_previous_and_best_after_each_epoch(recipe: MakeRecipe, tmp_path: Path) -> None:
    files = Files(tmp_path)
    made = recipe(metrics=scripted(3.0, 1.0, 2.0, 0.5), monitor="val/score")
    run = fit(made, logs=tmp_path, trainer={"max_epochs": 4, "callbacks": [files]}, checkpoint_seconds=0)
    assert files.seen == [
        {},
        {"best": 7, "last": 7},
        {"best": 14, "last": 14, "previous": 7},
        {"best": 14, "last": 21, "previous": 14},
        {"best": 28, "last": 28, "previous": 21},
    ]
    assert run.best is not None
    assert run.last_checkpoint is not None
    assert run.best.samefile(run.last_checkpoint), "the best epoch takes no second file where it is the last one"


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val/loss", "min"),
        ("val/loss", "max"),
        ("val/accuracy", "max"),
        ("train/loss", "min"),
        ("train/accuracy", "max"),
        ("gap/loss", "min"),
        ("gap/loss", "max"),
    ],
)
@pytest.mark.parametrize("validation", [{}, {"val_check_interval": 3}, {"check_val_every_n_epoch": 2}])
def test_best_is_the_best_by_the_monitor(
    recipe: MakeRecipe, monitor: str, mode: str, validation: dict[str, Any], tmp_path: Path
) -> None:
    made = recipe([Optimizer("SGD", lr=2.0)], monitor=monitor, mode=mode)  # a rate that goes up and down
    run = fit(made, logs=tmp_path, trainer={"max_epochs": 6, **validation})
    best = best_entry(run)
    assert step_of(run.best) == best.step
    assert run.metrics[monitor] == best.metrics[monitor]


def test_a_metric_that_is_no_number_is_never_the_best(recipe: MakeRecipe, tmp_path: Path) -> None:
    nan = float("nan")
    made = recipe(metrics=scripted(nan, 2.0, nan, 1.0, nan), monitor="val/score")
    with pytest.warns(UserWarning, match="val/score is nan at the first validation"):
        run = fit(made, logs=tmp_path, trainer={"max_epochs": 5})
    assert step_of(run.best) == 28
    never = recipe(metrics=scripted(nan, nan), monitor="val/score")
    with pytest.warns(UserWarning, match="there is no best epoch"):
        assert fit(never, logs=tmp_path, trainer={"max_epochs": 2}).best is None


def test_without_validation_nothing_is_best(recipe: MakeRecipe, data: Data, tmp_path: Path) -> None:
    files = Files(tmp_path)
    run = fit(recipe(data=Data(data.train, batch_size=16)), logs=tmp_path, trainer={"callbacks": [files]})
    assert (run.best, files.steps()) == (None, [7])


def test_a_monitor_that_is_never_logged_is_reported(recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"monitor='gap/acuracy': never logged.*gap/accuracy"):
        fit(recipe(monitor="gap/acuracy"), logs=tmp_path)


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_wrong_seconds(recipe: MakeRecipe, seconds: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint_seconds=.*: must be 0 or more; 0 writes a checkpoint after"):
        fit(recipe(), logs=tmp_path, checkpoint_seconds=seconds)
    assert list(tmp_path.iterdir()) == []


def test_no_files_where_none_are_wanted(recipe: MakeRecipe, tmp_path: Path) -> None:
    run = fit(recipe(), logs=tmp_path, trainer={"enable_checkpointing": False}, checkpoint_steps=1)
    assert not (tmp_path / "recipe" / "version_0" / "checkpoints").exists()
    assert run.status == "finished"


def test_in_a_quick_run_only_the_first_and_the_last_epoch_write(recipe: MakeRecipe, tmp_path: Path) -> None:
    files = Files(tmp_path)
    made = recipe(metrics=scripted(3.0, 1.0, 2.0, 4.0), monitor="val/score")
    run = fit(made, logs=tmp_path, trainer={"max_epochs": 4, "callbacks": [files]}, checkpoint_seconds=600)
    assert files.seen == [{}, {"best": 7, "last": 7}, {"best": 14, "last": 28, "previous": 7}]
    best = read_checkpoint(run.best or "")
    assert best["callbacks"]["checkpoints"]["best"] == 1.0
    assert [entry[1] for entry in best["framework"]["history"]] == [14], "as it was then"
    assert best["optimizer_states"][0]["state"][0]["step"] == 14
    assert read_checkpoint(run.last_checkpoint or "")["callbacks"]["checkpoints"]["best"] == 1.0


def test_the_best_that_waits_is_what_would_have_been_written(recipe: MakeRecipe, tmp_path: Path) -> None:
    kept = []
    for seconds in (0, 600):
        made = recipe(metrics=scripted(3.0, 1.0, 2.0, 4.0), monitor="val/score")
        run = fit(made, logs=tmp_path, trainer={"max_epochs": 4}, checkpoint_seconds=seconds)
        kept.append(read_checkpoint(run.best or ""))
    for content in kept:
        del content["callbacks"]["checkpoints"]["seconds"], content["callbacks"]["checkpoints"]["events"]
    assert repr(kept[0]) == repr(kept[1])
    for name, value in kept[0]["state_dict"].items():
        assert torch.equal(value, kept[1]["state_dict"][name])


@pytest.mark.parametrize("stop", ["should_stop", "max_steps", "max_time"])
def test_the_last_epoch_writes_however_the_run_ends(recipe: MakeRecipe, stop: str, tmp_path: Path) -> None:
    class Stops(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    options: dict[str, dict[str, Any]] = {
        "should_stop": {"max_epochs": 9, "callbacks": [Stops()]},
        "max_steps": {"max_epochs": -1, "max_steps": 17},
        "max_time": {"max_epochs": -1, "max_time": {"milliseconds": 300}},
    }
    run = fit(recipe(), logs=tmp_path, trainer=options[stop], checkpoint_seconds=600)
    assert run.steps > 7
    assert step_of(run.last_checkpoint) == run.steps


def test_a_best_that_waits_is_written_where_training_fails(recipe: MakeRecipe, tmp_path: Path) -> None:
    class Fails(Plugin):
        def begin_step(self, step: Any) -> None:
            if step.index == 24:
                raise RuntimeError("wrong")

    made = recipe([Fails()], metrics=scripted(3.0, 2.0, 1.0), monitor="val/score")
    with pytest.raises(RuntimeError, match="wrong"):
        fit(made, logs=tmp_path, trainer={"max_epochs": 4}, checkpoint_seconds=600)
    folder = tmp_path / "recipe" / "version_0" / "checkpoints"
    assert (step_of(folder / "best.ckpt"), step_of(folder / "last.ckpt")) == (21, 7)
    assert not (folder / "next.ckpt").exists()


def test_a_best_that_could_not_be_written_waits_for_the_next_file(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, tried = checkpoint_file.write_checkpoint, []

    def full_once(content: dict[str, Any], path: Any) -> None:
        tried.append(content["global_step"])
        if tried.count(14) == 1 and tried[-1] == 14:
            raise OSError(28, "No space left on device")
        write(content, path)

    monkeypatch.setattr(checkpoint_file, "write_checkpoint", full_once)
    made = recipe(metrics=scripted(3.0, 1.0, 2.0, 4.0), monitor="val/score")
    with pytest.warns(UserWarning, match="a checkpoint could not be written"):
        run = fit(made, logs=tmp_path, trainer={"max_epochs": 4}, checkpoint_seconds=600, checkpoint_steps=18)
    assert tried == [7, 14, 25, 14, 28]
    assert step_of(run.best) == 14
    previous = read_checkpoint(tmp_path / "recipe" / "version_0" / "checkpoints" / "previous.ckpt")
    assert previous["callbacks"]["checkpoints"]["best"] == 3.0, "of the best.ckpt that there was"


def test_a_best_of_a_large_network_is_written_at_once(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_LARGEST", 100)
    files = Files(tmp_path)
    made = recipe(metrics=scripted(3.0, 1.0, 2.0, 4.0), monitor="val/score")
    fit(made, logs=tmp_path, trainer={"max_epochs": 4, "callbacks": [files]}, checkpoint_seconds=600)
    assert files.seen[:3] == [{}, {"best": 7, "last": 7}, {"best": 14, "last": 7}]


def test_files_at_the_ends_of_epochs_are_seconds_apart(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, 1.0)  # a second a step, and one more an epoch
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    files = Files(tmp_path)
    fit(recipe(), logs=tmp_path, trainer={"max_epochs": 6, "callbacks": [files]}, checkpoint_seconds=15)
    assert files.steps() == [7, 21, 35, 42]


# ---- within an epoch -------------------------------------------------------------------------------------------------


def test_every_so_many_steps(recipe: MakeRecipe, tmp_path: Path) -> None:
    files = Files(tmp_path)
    fit(
        recipe(),
        logs=tmp_path,
        trainer={"max_epochs": 2, "callbacks": [files]},
        checkpoint_steps=3,
        checkpoint_seconds=0,
    )
    assert files.steps() == [3, 6, 7, 10, 13, 14]  # counted from the file before, whatever made that one
    assert files.steps("previous") == [3, 6, 7, 10, 13]


def test_a_file_that_is_due_waits_for_the_validation_at_its_step(recipe: MakeRecipe, tmp_path: Path) -> None:
    files = Files(tmp_path)
    options = {"callbacks": [files], "val_check_interval": 2}
    made = recipe(metrics=scripted(3.0, 2.0, 1.0), monitor="val/score")
    run = fit(made, logs=tmp_path, trainer=options, checkpoint_steps=4, checkpoint_seconds=0)
    assert files.steps() == [4, 7]
    assert files.steps("best") == [2, 4, 6], "the best is written at once: training goes on from there"
    previous = read_checkpoint(files.folder / "previous.ckpt")
    assert [step for _, step, _ in previous["framework"]["history"]] == [4], "the best and the last, which is the same"
    assert run.status == "finished"


def test_files_are_written_where_every_step_is_validated(recipe: MakeRecipe, tmp_path: Path) -> None:
    files = Files(tmp_path)
    options = {"callbacks": [files], "val_check_interval": 1}
    fit(recipe(metrics=scripted(*range(7)), monitor="val/score"), logs=tmp_path, trainer=options, checkpoint_steps=3)
    assert files.steps() == [3, 6, 7]
    assert files.steps("best") == [1]


def test_every_so_many_minutes(recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 30.0)  # half a minute a step
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    files = Files(tmp_path)
    fit(recipe(), logs=tmp_path, trainer={"callbacks": [files]}, checkpoint_minutes=1.5)
    assert files.steps() == [3, 6, 7]


def test_neither_steps_nor_minutes(recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=itertools.count(0.0, 1e6).__next__))
    files = Files(tmp_path)
    fit(recipe(), logs=tmp_path, trainer={"callbacks": [files]}, checkpoint_minutes=None)
    assert files.steps() == [7]


@pytest.mark.parametrize("option", ["checkpoint_steps", "checkpoint_minutes"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_wrong_distances(recipe: MakeRecipe, option: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{option}=.*: must be above 0, or None for no such rule"):
        fit(recipe(), logs=tmp_path, **{option: value})
    assert list(tmp_path.iterdir()) == []


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_best_epoch_that_could_not_be_written_does_not_count(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint_file.write_checkpoint

    def full(content: dict[str, Any], path: Any) -> None:
        if content["global_step"] == 14:
            raise OSError(28, "No space left on device")
        write(content, path)

    monkeypatch.setattr(checkpoint_file, "write_checkpoint", full)
    files = Files(tmp_path)
    made = recipe(metrics=scripted(5.0, 1.0, 3.0, 4.0), monitor="val/score")
    with pytest.warns(UserWarning, match="a checkpoint could not be written"):
        run = fit(made, logs=tmp_path, trainer={"max_epochs": 4, "callbacks": [files]}, checkpoint_seconds=0)
    assert files.steps("best") == [7, 21]
    assert files.steps() == [7, 21, 28]
    assert read_checkpoint(run.last_checkpoint or "")["callbacks"]["checkpoints"]["best"] == 3.0


def test_where_files_have_no_second_name_the_best_is_a_copy(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run = fit(recipe(), logs=tmp_path)
    assert run.best is not None
    assert run.last_checkpoint is not None
    assert not run.best.samefile(run.last_checkpoint)
    assert run.best.read_bytes() == run.last_checkpoint.read_bytes()
    assert len(list(run.best.parent.iterdir())) == 2


class Spoils(Plugin):
    """Makes a weight infinite at a step."""

    step: int = 0

    def attach(self, core: Core) -> None:
        self.weight_ = next(core.model.parameters())

    def after_update(self, step: Any) -> None:
        if step.index == self.step:
            self.weight_[0, 0] = float("inf")


@pytest.mark.filterwarnings("ignore:validation. the loss is:UserWarning")
@pytest.mark.parametrize(("step", "every", "kept"), [(13, None, 7), (9, 3, 7), (10, 2, 9)])
def test_weights_that_are_not_finite_are_never_written(
    recipe: MakeRecipe, step: int, every: int | None, kept: int, tmp_path: Path
) -> None:
    made = recipe([Spoils(step)])
    with pytest.raises(NonFiniteError):
        fit(made, logs=tmp_path, trainer={"max_epochs": 3}, checkpoint_steps=every, checkpoint_seconds=0)
    folder = tmp_path / "recipe" / "version_0" / "checkpoints"
    for path in folder.iterdir():
        assert all(bool(value.isfinite().all()) for value in read_checkpoint(path)["state_dict"].values()), path
    assert step_of(folder / "last.ckpt") == kept


def test_names_of_a_phase_stand_apart() -> None:
    assert (checkpoints.previous("last"), checkpoints.previous("retrain")) == ("previous", "previous_retrain")
