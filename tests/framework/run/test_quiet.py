from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from framework.data import Data
from framework.engine.core import Core
from framework.run.quiet import quiet

LOGGER = logging.getLogger("pytorch_lightning.utilities.rank_zero")
Scenario = Callable[[Path, Callable[..., Core]], None]


@pytest.fixture(autouse=True)
def reset_warnings() -> Iterator[None]:
    """Let Lightning repeat what it prints once per process, and print all of it."""
    from pytorch_lightning.trainer.connectors.logger_connector.result import warning_cache

    warning_cache.clear()
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    yield
    LOGGER.setLevel(level)


def said(context: AbstractContextManager[None], scenario: Callable[[], Any]) -> list[str]:
    """Return what is logged and warned of while ``scenario`` runs."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with context:
                scenario()
    finally:
        LOGGER.removeHandler(handler)
    return messages + [str(one.message) for one in caught]


def trainer(**options: Any) -> pl.Trainer:
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**{"max_epochs": 1, "accelerator": "cpu", **off, **options})


def make_trainer(folder: Path, core_of: Callable[..., Core]) -> None:
    trainer()


def train(folder: Path, core_of: Callable[..., Core]) -> None:
    trainer().fit(core_of())


def train_for_steps(folder: Path, core_of: Callable[..., Core]) -> None:
    trainer(max_epochs=-1, max_steps=2).fit(core_of())


def train_in_bfloat16(folder: Path, core_of: Callable[..., Core]) -> None:
    trainer(precision="bf16-mixed").fit(core_of())


def train_with_logger(folder: Path, core_of: Callable[..., Core]) -> None:
    trainer(logger=TensorBoardLogger(folder)).fit(core_of())


def train_without_validation(folder: Path, core_of: Callable[..., Core]) -> None:
    trainer().fit(core_of(data=Data((torch.randn(8, 64), torch.zeros(8, dtype=torch.long)))))


def evaluate_a_checkpoint(folder: Path, core_of: Callable[..., Core]) -> None:
    kept = ModelCheckpoint(folder / "version_3" / "checkpoints", filename="best", monitor="val/loss")
    trainer(enable_checkpointing=True, callbacks=[kept]).fit(core_of())
    trainer().test(core_of(), ckpt_path=folder / "version_3" / "checkpoints" / "best.ckpt", verbose=False)


def train_once_more(folder: Path, core_of: Callable[..., Core]) -> None:
    for _ in range(2):
        kept = ModelCheckpoint(folder / "version_3" / "checkpoints", filename="best", enable_version_counter=False)
        trainer(enable_checkpointing=True, callbacks=[kept]).fit(core_of())


def interrupt(folder: Path, core_of: Callable[..., Core]) -> None:
    class Presses(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise KeyboardInterrupt

    kept = ModelCheckpoint(folder, save_on_exception=True)
    with pytest.raises(SystemExit):
        trainer(enable_checkpointing=True, callbacks=[kept, Presses()]).fit(core_of())


@pytest.mark.parametrize(
    ("scenario", "part"),
    [
        (make_trainer, "Tip: For seamless cloud"),
        (make_trainer, "GPU available: "),
        (make_trainer, "TPU available: "),
        (train, "Loading `train_dataloader` to estimate"),
        (train, "`Trainer.fit` stopped: `max_epochs=1`"),
        (train, "LeafSpec"),
        (train_for_steps, "`Trainer.fit` stopped: `max_steps=2`"),
        (train_in_bfloat16, "Using bfloat16 Automatic Mixed Precision"),
        (train_with_logger, "smaller than the logging interval"),
        (train_without_validation, "Total length of `list` across ranks is zero"),
        (evaluate_a_checkpoint, "Restoring states from the checkpoint path"),
        (evaluate_a_checkpoint, "Loaded model weights from the checkpoint"),
        (evaluate_a_checkpoint, "callbacks used to create the checkpoint need to be provided"),
        (train_once_more, "exists and is not empty"),
        (interrupt, "An KeyboardInterrupt was raised"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_silences_what_lightning_says(
    scenario: Scenario, part: str, tmp_path: Path, core_of: Callable[..., Core]
) -> None:
    loud, hushed = tmp_path / "loud", tmp_path / "quiet"
    loud.mkdir()
    hushed.mkdir()
    assert any(part in message for message in said(nullcontext(), lambda: scenario(loud, core_of)))
    from pytorch_lightning.trainer.connectors.logger_connector.result import warning_cache

    warning_cache.clear()
    assert not any(part in message for message in said(quiet(), lambda: scenario(hushed, core_of)))


def test_a_quiet_run_says_nothing(tmp_path: Path, core_of: Callable[..., Core]) -> None:
    assert said(quiet(), lambda: train_with_logger(tmp_path, core_of)) == []


def test_silences_mixed_precision_of_a_gpu() -> None:
    text = "Using 16bit Automatic Mixed Precision (AMP)"
    assert said(nullcontext(), lambda: rank_zero_info(text)) == [text]
    assert said(quiet(), lambda: rank_zero_info(text)) == []


class Warns(Core):
    def compute_loss(self, batch: Any) -> Any:
        if self.training and self.at.index == 0:
            warnings.warn("my features are not scaled", UserWarning, stacklevel=2)
        return super().compute_loss(batch)


def test_keeps_a_warning_of_the_user(core_of: Callable[..., Core]) -> None:
    assert said(quiet(), lambda: trainer().fit(core_of(kind=Warns))) == ["my features are not scaled"]


def test_keeps_a_warning_of_modules_in_eval_mode(core_of: Callable[..., Core]) -> None:
    core = core_of()
    core.model[1].eval()
    messages = said(quiet(), lambda: trainer().fit(core))
    assert [message.partition(" at ")[0] for message in messages] == ["Found 1 module(s) in eval mode"]


def test_keeps_a_warning_of_someone_elses_checkpoints(tmp_path: Path, core_of: Callable[..., Core]) -> None:
    (tmp_path / "mine.ckpt").touch()
    kept = ModelCheckpoint(tmp_path)
    messages = said(quiet(), lambda: trainer(enable_checkpointing=True, callbacks=[kept]).fit(core_of()))
    assert messages == [f"Checkpoint directory {tmp_path} exists and is not empty."]


def test_keeps_a_missing_callback_with_a_state(tmp_path: Path, core_of: Callable[..., Core]) -> None:
    class Counts(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"count": 1}

    first = trainer(callbacks=[Counts()])
    first.fit(core_of())
    first.save_checkpoint(tmp_path / "a.ckpt")
    messages = said(quiet(), lambda: trainer().test(core_of(), ckpt_path=tmp_path / "a.ckpt", verbose=False))
    assert len(messages) == 1
    assert "Counts" in messages[0]


@pytest.mark.parametrize(
    "text",
    [
        "GPU available but not used. You can set it by doing `Trainer(accelerator='gpu')`.",
        "It is recommended to use `self.log('perplexity', ..., sync_dist=True)` when logging on epoch level",
        "The 'train_dataloader' does not have many workers which may be a bottleneck.",
    ],
)
def test_keeps_other_warnings_of_lightning(text: str) -> None:
    assert said(quiet(), lambda: rank_zero_warn(text)) == [text]


@pytest.mark.parametrize(
    "text",
    [
        "`Trainer.fit` stopped: No training batches.",
        "An RuntimeError was raised with message: out of memory, saved checkpoint to last.ckpt",
        "Detected KeyboardInterrupt, attempting graceful shutdown ...",
        "Time limit reached. Elapsed time is 0:00:01. Signaling Trainer to stop.",
    ],
)
def test_keeps_other_messages_of_lightning(text: str) -> None:
    assert said(quiet(), lambda: rank_zero_info(text)) == [text]


def test_speaks_again_after_an_error() -> None:
    filters = list(warnings.filters)
    with pytest.raises(RuntimeError, match="on purpose"), quiet():
        raise RuntimeError("on purpose")
    assert warnings.filters == filters
    assert said(nullcontext(), lambda: rank_zero_info("GPU available: False, used: False")) != []


def test_leaves_the_network_alone(core_of: Callable[..., Core], weights: Callable[[nn.Module], torch.Tensor]) -> None:
    loud, hushed = core_of(), core_of()
    said(nullcontext(), lambda: trainer().fit(loud))
    said(quiet(), lambda: trainer().fit(hushed))
    assert torch.equal(weights(loud), weights(hushed))
