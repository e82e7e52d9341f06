"""Our loop over the validation batches: the same notices, figures and counters as with Lightning's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop
from pytorch_lightning.profilers import SimpleProfiler
from torchmetrics.classification import MulticlassAccuracy

from framework.engine.core import Core
from framework.engine.loop import EpochLoop
from framework.engine.validation import ValidationLoop
from framework.run.quiet import quiet

CoreOf = Callable[..., Core]

TOLD = (
    "on_sanity_check_start",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_sanity_check_end",
)


class Diary(pl.Callback):
    """Records each notice: its arguments, the loop's counters, the modes, and what Lightning takes to be running."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        for name in TOLD:
            setattr(self, name, self._writer(name))

    def _writer(self, name: str) -> Callable[..., None]:
        def write(trainer: pl.Trainer, core: Core, *args: Any) -> None:
            said = [a[0].sum().item() if isinstance(a, (tuple, list)) else a for a in args]
            loop = trainer.fit_loop.epoch_loop.val_loop
            seen = (loop._has_run, dict(loop._seen_batches_per_dataloader), loop._results.batch is None)
            modes = (core.model.training, torch.is_grad_enabled(), trainer.sanity_checking, trainer.validating)
            first = trainer._logger_connector._first_loop_iter
            self.entries.append((name, said, loop.state_dict(), seen, modes, core._current_fx_name, first))

        return write


class Listening(Core):
    """A core with hooks of its own, which logs by Lightning."""

    heard: tuple[Any, ...] = ()

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.heard += (("start", len(batch[0]), batch_idx, self._current_fx_name),)
        self.log("started", float(batch_idx), on_step=True, on_epoch=True, batch_size=1)

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.heard += (("end", outputs, len(batch[0]), batch_idx, self._current_fx_name),)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log("ended", float(self.at.index))


class OwnStep(Core):
    """A core with a validation step of its own."""

    def validation_step(self, batch: Any) -> None:  # type: ignore[override]
        self.recorder.evaluate("val", batch)
        self.log("sum", batch[0].sum(), batch_size=len(batch[0]))


def fitted(core: Core, *, own: bool, **options: Any) -> tuple[list[Any], pl.Trainer]:
    """Fit with Lightning's own loop of validation or with ours; the training loop is ours in any case."""
    diary = Diary()
    quick = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quick |= {"enable_model_summary": False, "num_sanity_val_steps": 2, "max_epochs": 2}
    trainer = pl.Trainer(**{**quick, **options}, callbacks=[diary])
    lightnings = trainer.fit_loop.epoch_loop.val_loop
    trainer.fit_loop.epoch_loop = EpochLoop(trainer.fit_loop.epoch_loop)
    assert type(trainer.fit_loop.epoch_loop.val_loop) is ValidationLoop
    if not own:
        assert type(lightnings) is _EvaluationLoop
        trainer.fit_loop.epoch_loop.val_loop = lightnings
    with quiet():
        trainer.fit(core)
    return diary.entries, trainer


@pytest.mark.parametrize("kind", [Core, Listening, OwnStep])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_sanity_val_steps": 0, "limit_val_batches": 2},
        {"limit_val_batches": 0},
        {"val_check_interval": 3},
        {"val_check_interval": 1, "max_epochs": 1},
        {"check_val_every_n_epoch": 2, "reload_dataloaders_every_n_epochs": 1},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"inference_mode": False},
        {"fast_dev_run": 2},
    ],
    ids=", ".join,
)
def test_it_is_lightnings_but_for_the_time(core_of: CoreOf, kind: type[Core], options: dict[str, Any]) -> None:
    metrics = {"accuracy": MulticlassAccuracy(10, average="micro")}
    cores = [core_of(kind=kind, metrics=metrics), core_of(kind=kind, metrics=metrics)]
    theirs, ours = (fitted(core, own=own, **options) for core, own in zip(cores, (False, True), strict=True))
    assert theirs[0] == ours[0]
    assert bool(ours[0]) == (options.get("limit_val_batches") != 0)
    assert repr(theirs[1].callback_metrics) == repr(ours[1].callback_metrics)
    assert repr(theirs[1].logged_metrics) == repr(ours[1].logged_metrics)
    assert repr(cores[0].recorder.history) == repr(cores[1].recorder.history)
    assert getattr(cores[0], "heard", ()) == getattr(cores[1], "heard", ())


def test_loggers_get_the_same(core_of: CoreOf, tmp_path: Any) -> None:
    for own in (False, True):
        logger = CSVLogger(tmp_path, name="", version=str(own))
        fitted(core_of(kind=Listening), own=own, logger=logger, log_every_n_steps=1)
    lines = [(tmp_path / name / "metrics.csv").read_text() for name in ("False", "True")]
    assert lines[0] == lines[1]
    assert "started" in lines[0]


def test_a_profiler_still_sees_the_hooks(core_of: CoreOf) -> None:
    profiler = SimpleProfiler()
    fitted(core_of(), own=True, profiler=profiler)
    assert any("validation_step" in action for action in profiler.recorded_durations)
