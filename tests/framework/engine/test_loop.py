"""Our loop over an epoch's batches: callbacks and checkpoints see the same as with Lightning's own."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.profilers import SimpleProfiler
from torch import Tensor

from framework.data import Window
from framework.engine.core import Core
from framework.engine.loop import EpochLoop
from framework.run.quiet import quiet

CoreOf = Callable[..., Core]
Weights = Callable[[Core], Tensor]

TOLD = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
)


class Diary(pl.Callback):
    """Records each notice: its arguments, the loops' counters, and what Lightning takes to be running."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        for name in TOLD:
            setattr(self, name, self._writer(name))

    def _writer(self, name: str) -> Callable[..., None]:
        def write(trainer: pl.Trainer, core: pl.LightningModule, *args: Any) -> None:
            # a batch is its numbers, so that runs can be compared
            said = [[one[0].sum().item() for one in a.batches] if isinstance(a, Window) else a for a in args]
            said = said if name.startswith("on_train") else []
            loop = trainer.fit_loop
            stands = (trainer.global_step, trainer.current_epoch, trainer.is_last_batch, loop._data_fetcher.fetched)
            kept = deepcopy(loop.state_dict())
            first = trainer._logger_connector._first_loop_iter
            self.entries.append(
                (name, said, stands, kept, core._current_fx_name, first, sorted(trainer.callback_metrics))
            )

        return write


def fitted(
    core: Core, *, own: bool, callbacks: Any = (), ckpt_path: Path | None = None, **options: Any
) -> tuple[Diary, pl.Trainer]:
    """Fit with Lightning's own loop or with ours."""
    diary = Diary()
    quick = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quick |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": 2}
    trainer = pl.Trainer(**{**quick, **options}, callbacks=[*callbacks, diary])
    if not own:
        trainer.fit_loop.epoch_loop = EpochLoop(trainer.fit_loop.epoch_loop)
    with quiet():
        trainer.fit(core, ckpt_path=ckpt_path)
    return diary, trainer


class Stop(pl.Callback):
    """Asks to stop in the tenth step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 10:
            trainer.should_stop = True


class Listening(Core):
    """A core with hooks of its own."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.heard: list[Any] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self.heard.append(("start", batch.start, batch_idx, self.trainer.global_step))
        return -1 if self.trainer.current_epoch == 0 and batch_idx == 4 else None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.heard.append(("end", outputs, batch.start, batch_idx, self.trainer.global_step))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch._replace(start=batch.start + 1000) if isinstance(batch, Window) else batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch._replace(start=batch.start * 2) if isinstance(batch, Window) else batch


OPTIONS: list[dict[str, Any]] = [
    {},
    {"limit_val_batches": 0},
    {"max_steps": 9},
    {"limit_train_batches": 3},
    {"limit_train_batches": 0.5, "max_epochs": 3},
    {"val_check_interval": 3},
    {"val_check_interval": 0.3},
    {"val_check_interval": 5, "check_val_every_n_epoch": None},
    {"check_val_every_n_epoch": 2, "reload_dataloaders_every_n_epochs": 1},
    {"callbacks": [Stop()]},
    {"callbacks": [Stop()], "min_epochs": 2, "max_epochs": 3},
    {"overfit_batches": 2},
    {"precision": "bf16-mixed"},
    {"precision": "64-true", "max_epochs": 1},
    {"fast_dev_run": 2},
    {"val_check_interval": "00:00:00:01"},
    {"barebones": True, "enable_checkpointing": None, "logger": None},
]


@pytest.mark.parametrize("options", OPTIONS, ids=", ".join)
def test_callbacks_get_the_notices_of_lightnings_loop(
    core_of: CoreOf, weights: Weights, options: dict[str, Any]
) -> None:
    cores = [core_of(), core_of()]
    diaries = [fitted(core, own=own, **options)[0].entries for core, own in zip(cores, (False, True), strict=True)]
    assert len(diaries[0]) > 5
    assert diaries[0] == diaries[1]
    assert torch.equal(weights(cores[0]), weights(cores[1]))


def test_hooks_of_the_cores_own_are_asked_and_may_end_the_epoch(core_of: CoreOf, weights: Weights) -> None:
    cores = [core_of(kind=Listening), core_of(kind=Listening)]
    diaries = [fitted(core, own=own)[0].entries for core, own in zip(cores, (False, True), strict=True)]
    assert diaries[0] == diaries[1]
    assert cores[0].heard == cores[1].heard  # type: ignore[attr-defined]
    assert cores[0].heard[0] == ("start", 2000, 0, 0)  # type: ignore[attr-defined]
    assert torch.equal(weights(cores[0]), weights(cores[1]))
    assert cores[0].trainer.global_step == 4 + 7


class Save(pl.Callback):
    """Saves after the steps given."""

    def __init__(self, folder: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def on_validation_end(self, trainer: pl.Trainer, core: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}v.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, core: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}e.ckpt")


@pytest.mark.parametrize("which", ["3", "6", "7", "3v", "7v", "7e", "14"])
def test_a_run_resumes_as_under_lightnings_loop(core_of: CoreOf, weights: Weights, tmp_path: Path, which: str) -> None:
    options = {"max_epochs": 3, "val_check_interval": 3} if which == "3v" else {"max_epochs": 3}
    fitted(core_of(), own=False, callbacks=[Save(tmp_path, (3, 6, 7, 14))], **options)
    cores = [core_of(), core_of()]
    path = tmp_path / f"{which}.ckpt"
    diaries = [
        fitted(core, own=own, ckpt_path=path, **options)[0].entries
        for core, own in zip(cores, (False, True), strict=True)
    ]
    assert diaries[0] == diaries[1]
    assert torch.equal(weights(cores[0]), weights(cores[1]))


class Logs(pl.Callback):
    """Logs through Lightning, at each step, at each epoch, and both."""

    def on_train_batch_end(self, trainer: pl.Trainer, core: pl.LightningModule, *args: Any) -> None:
        core.log("index", float(args[-1]), on_step=True, on_epoch=True, batch_size=1)
        if args[-1] % 2:
            core.log("odd", float(args[-1]), on_step=False, on_epoch=True, batch_size=1)


def test_what_is_logged_through_lightning_arrives_alike(core_of: CoreOf, tmp_path: Path) -> None:
    logged = []
    for own in (False, True):
        logger = CSVLogger(tmp_path / str(own))
        _, trainer = fitted(core_of(), own=own, callbacks=[Logs()], logger=logger, log_every_n_steps=2)
        logger.save()
        rows = (Path(logger.log_dir) / "metrics.csv").read_text()
        logged.append((rows, {name: float(value) for name, value in trainer.callback_metrics.items()}))
    assert logged[0] == logged[1]
    assert "index_step" in logged[0][0]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the batches of which Lightning's own loop made the steps."""
    batches: list[int] = []
    theirs = _TrainingEpochLoop.advance

    def advance(self: Any, fetcher: Any) -> None:
        batches.append(self.batch_progress.current.ready)
        theirs(self, fetcher)

    monkeypatch.setattr(_TrainingEpochLoop, "advance", advance)
    return batches


def test_lightnings_loop_makes_no_step_of_a_plain_run(core_of: CoreOf, counted: list[int]) -> None:
    _, trainer = fitted(core_of(), own=False)
    assert counted == []
    assert trainer.global_step == 14


def test_lightnings_loop_makes_the_first_step_of_a_resumed_run(
    core_of: CoreOf, counted: list[int], tmp_path: Path
) -> None:
    fitted(core_of(), own=False, callbacks=[Save(tmp_path, (3,))])
    fitted(core_of(), own=False, ckpt_path=tmp_path / "3.ckpt")
    assert counted == [3]


class Steps(Core):
    """A core with a step of its own."""

    def training_step(self, window: Any, batch_idx: int) -> None:
        super().training_step(window, batch_idx)


def test_lightnings_loop_is_used_where_more_is_asked_of_it(core_of: CoreOf, counted: list[int]) -> None:
    fitted(core_of(kind=Steps), own=False, max_epochs=1)
    assert counted == list(range(7))
    profiler = SimpleProfiler()
    fitted(core_of(), own=False, max_epochs=1, profiler=profiler)
    assert counted == 2 * list(range(7))
    assert len(profiler.recorded_durations["run_training_batch"]) == 7


def test_ranks_exchange_gradients_alone(core_of: CoreOf) -> None:
    class Count(pl.Callback):
        """Counts what the ranks send besides."""

        def on_train_start(self, trainer: pl.Trainer, core: pl.LightningModule) -> None:
            self.sent, theirs = 0, torch.distributed.broadcast

            def broadcast(*args: Any, **options: Any) -> Any:
                self.sent += 1
                return theirs(*args, **options)

            torch.distributed.broadcast = broadcast

        def on_train_epoch_end(self, trainer: pl.Trainer, core: pl.LightningModule) -> None:
            assert self.sent == 0, f"{self.sent} broadcasts in {trainer.global_step} steps"
            assert trainer.global_step == 4

    quick = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options: Any = {**quick, "enable_model_summary": False, "limit_val_batches": 0, "max_epochs": 1}
    trainer = pl.Trainer(**options, callbacks=[Count()], strategy="ddp_fork", devices=2)
    trainer.fit_loop.epoch_loop = EpochLoop(trainer.fit_loop.epoch_loop)
    with quiet():
        trainer.fit(core_of())
