"""What a checkpoint keeps of a run, and where a resumed run goes on."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from framework.data import Data
from framework.engine.core import Core
from framework.engine.recorder import Entry
from framework.engine.state import FORMAT, OWN_ENTRIES, BadCheckpoint, check_format, go_on_within_epoch, out_of_time
from framework.plugin import Plugin

CoreOf = Callable[..., Core]
Train = Callable[..., pl.Trainer]
Weights = Callable[[Core], Tensor]


class Momentum(Plugin):
    """Has state in the optimizer and the schedule, and draws at each step and sample."""

    def make_optimizer(self, groups: Any) -> Any:
        return torch.optim.AdamW(groups, lr=0.01)

    def make_scheduler(self, optimizer: Any, total_steps: int) -> Any:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"scheduler": schedule, "interval": "step"}

    def transform_sample(self, sample: Any, rng: Any) -> Any:
        x, y = sample
        return x + 0.01 * float(rng.normal()), y

    def transform_batch(self, batch: Any, step: Any) -> Any:
        x, y = batch
        return x + 0.1 * step.normal(self, x), y


@pytest.mark.parametrize("where", [{"every_n_train_steps": 3}, {"every_n_train_steps": 9}, {"every_n_epochs": 1}])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_goes_on_with_the_same_bits(
    core_of: CoreOf,
    train: Train,
    weights: Weights,
    mlp: Any,
    data: Data,
    tmp_path: Any,
    where: dict[str, int],
    workers: int,
) -> None:
    """In the middle of an epoch, in the middle of a later one, and at an epoch's end."""

    def fresh() -> Core:
        model = nn.Sequential(mlp()[0], nn.Dropout(0.2), nn.Tanh(), mlp()[2])
        cut = Data(data.train, data.val, batch_size=16, workers=workers)
        return core_of(Momentum(), model=model, data=cut)

    whole, rest = fresh(), fresh()
    train(whole, max_epochs=3)
    keep = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", **where)
    begun = {"max_epochs": 3, "max_steps": where.get("every_n_train_steps", 14)}
    train(fresh(), callbacks=[keep], enable_checkpointing=True, **begun)
    path = max(tmp_path.glob("*.ckpt"), key=lambda file: int(file.stem.partition("=")[2]))
    trainer = train(rest, ckpt_path=path, max_epochs=3)
    assert trainer.global_step == 21
    assert torch.equal(weights(rest), weights(whole))
    assert rest.recorder.history[-1] == whole.recorder.history[-1]


# ---- what is kept ----------------------------------------------------------------------------------------------------


def kept_of(core: Core, train: Train, folder: Path, **options: Any) -> dict[str, Any]:
    """Return the part that is the run's own of the last checkpoint of a fit."""
    keep = pl.callbacks.ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)
    train(core, callbacks=[keep], enable_checkpointing=True, **options)
    return torch.load(folder / "last.ckpt", weights_only=True)["framework"]


def test_a_checkpoint_does_not_grow_with_the_run_and_holds_its_best_and_last_entry(
    core_of: CoreOf, train: Train, tmp_path: Path
) -> None:
    sizes = []
    for epochs in (3, 12):
        core = core_of(
            metrics={"accuracy": MulticlassAccuracy(10, average="micro")}, mode="max", monitor="val/accuracy"
        )
        kept = kept_of(core, train, tmp_path / str(epochs), max_epochs=epochs)
        best = max(core.recorder.history, key=lambda entry: entry.metrics.get("val/accuracy", -1.0))
        entries = [Entry(*entry) for entry in kept["history"]]
        assert len(core.recorder.history) >= epochs
        assert len(entries) <= 2
        assert best in entries
        assert entries[-1].epoch == epochs - 1
        assert {"format", *OWN_ENTRIES} <= kept.keys()
        assert (kept["format"], kept["samples_per_step"], kept["stopped"]) == (FORMAT, 16, None)
        sizes.append(len(str({**kept, "history": None})))
    assert abs(sizes[0] - sizes[1]) < 20  # numbers of more digits


def test_who_stopped_a_run_is_kept_with_the_settings(core_of: CoreOf, train: Train, tmp_path: Path) -> None:
    class Stops(Plugin):
        patience: int = 1

        def should_stop(self, metrics: Any) -> bool:
            return True

    kept = kept_of(core_of(Stops(patience=3)), train, tmp_path, max_epochs=3)
    assert kept["stopped"] == {"stops": {"name": "stops", "patience": 3}}


# ---- going on within an epoch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "is_last_batch", "should_stop", "max_steps", "goes_on"),
    [
        (True, False, False, -1, True),
        (True, False, False, 20, True),
        (True, False, False, 5, False),  # its steps are done
        (True, False, True, -1, False),  # a plugin ended it
        (True, True, False, -1, False),  # the epoch was whole
        (False, False, False, -1, False),  # it was cut off, and goes on anyway
    ],
)
def test_an_epoch_that_was_cut_short_goes_on_where_more_is_to_come(
    ended: bool, is_last_batch: bool, should_stop: bool, max_steps: int, goes_on: bool
) -> None:
    def progress() -> dict[str, int]:
        return {"ready": 2, "started": 2, "processed": 2 if ended else 1, "completed": 2 if ended else 1}

    loops = {
        "epoch_progress": {"current": progress(), "total": progress()},
        "epoch_loop.batch_progress": {"is_last_batch": is_last_batch},
    }
    go_on_within_epoch(SimpleNamespace(should_stop=should_stop, max_steps=max_steps), loops, 5)
    counts = loops["epoch_progress"]
    done = 1 if goes_on or not ended else 2
    for which in ("current", "total"):
        assert (counts[which]["processed"], counts[which]["completed"], counts[which]["ready"]) == (done, done, 2)


def test_time_is_over_where_a_timer_says_so() -> None:
    def trainer(*timers: Any) -> Any:
        return SimpleNamespace(callbacks=[pl.Callback(), *timers])

    long, over, endless = Timer(datetime.timedelta(hours=1)), Timer(datetime.timedelta(0)), Timer(None)
    assert not any(out_of_time(trainer(*timers)) for timers in ((), (endless,), (long,), (endless, long)))
    assert out_of_time(trainer(long, over))


# ---- the format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "file.ckpt: not a checkpoint of this framework"),
        ({"framework": 3}, "not a checkpoint of this framework"),
        ({"framework": {}}, "has format None, but this version reads format"),
        ({"framework": {"format": FORMAT + 1}}, f"has format {FORMAT + 1}, but this version reads format {FORMAT}"),
    ],
)
def test_other_formats_are_told(content: dict[str, Any], words: str) -> None:
    with pytest.raises(BadCheckpoint, match=words):
        check_format(content, "file.ckpt")


def test_the_format_of_this_version_is_read() -> None:
    check_format({"framework": {"format": FORMAT}}, "file.ckpt")
