from __future__ import annotations

import io
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torchmetrics.classification import MulticlassAccuracy

from framework.data import Data
from framework.engine.core import Core
from framework.report import progress
from framework.report.progress import Bar, Lines, duration, make_progress, number, shown

SHOW = {"enable_progress_bar": True}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream = Terminal()
    # not sys.stdout itself: pytest puts its own there when the test begins
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stdout=stream))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    return stream


class Clock:
    """Time that stands still until a test advances it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def accuracy() -> dict[str, Any]:
    return {"metrics": {"accuracy": MulticlassAccuracy(10, average="micro")}}


# ---- which ----------------------------------------------------------------------------------------------------------


def test_a_terminal_gets_a_bar(terminal: Terminal) -> None:
    assert isinstance(make_progress(), Bar)


@pytest.mark.parametrize(("variable", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_a_terminal_that_nobody_watches_gets_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert isinstance(make_progress(), Lines)


def test_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stdout=io.StringIO()))
    monkeypatch.delenv("CI", raising=False)
    assert isinstance(make_progress(), Lines)


# ---- lines ----------------------------------------------------------------------------------------------------------


def test_lines_report_each_epoch(
    core_of: Callable[..., Core], train: Callable[..., pl.Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    core = core_of(**accuracy())
    train(core, callbacks=[Lines()], max_epochs=10, num_sanity_val_steps=2, **SHOW)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    pattern = r"epoch (..)/10  train/loss ([\d.]{6})  val/loss ([\d.]{6})  val/accuracy ([\d.]{6})  \d+\.\d+ s"
    for line, entry in zip(lines, core.recorder.history, strict=True):
        match = re.fullmatch(pattern, line)
        assert match is not None, line
        assert int(match[1]) == entry.epoch + 1
        assert float(match[2]) == pytest.approx(entry.metrics["train/loss"], abs=1e-4)
        assert float(match[3]) == pytest.approx(entry.metrics["val/loss"], abs=1e-4)
        assert float(match[4]) == pytest.approx(entry.metrics["val/accuracy"], abs=1e-4)


def test_lines_report_validations_within_an_epoch_at_once(
    core_of: Callable[..., Core], train: Callable[..., pl.Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    train(core_of(), callbacks=[Lines()], val_check_interval=3, max_epochs=1, **SHOW)
    starts = [line.partition("  val/loss")[0] for line in capsys.readouterr().out.splitlines()]
    assert starts[:2] == ["epoch 1/1  step 3", "epoch 1/1  step 6"]
    assert starts[2].startswith("epoch 1/1  train/loss ")
    assert len(starts) == 3


def test_lines_without_validation_report_training(
    core_of: Callable[..., Core],
    digits: tuple[torch.Tensor, torch.Tensor],
    train: Callable[..., pl.Trainer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    core = core_of(data=Data(digits, batch_size=64), **accuracy())
    train(core, callbacks=[Lines()], max_epochs=-1, max_steps=6, **SHOW)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[\d.]{4,}", "N", line) for line in lines] == [
        "epoch 1  train/loss N  train/accuracy N  N s",
        "epoch 2  train/loss N  train/accuracy N  N s",
    ]


def test_a_resumed_run_reports_its_own_epochs(
    core_of: Callable[..., Core],
    train: Callable[..., pl.Trainer],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Any,
) -> None:
    train(core_of(), max_epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    train(core_of(), callbacks=[Lines()], max_epochs=3, ckpt_path=tmp_path / "two.ckpt", **SHOW)
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == ["epoch 3/3"]


def test_an_error_comes_after_the_last_whole_epoch(
    core_of: Callable[..., Core], train: Callable[..., pl.Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    class Fails(Core):
        def compute_loss(self, batch: Any) -> Any:
            if self.at.index == 10:
                raise RuntimeError("on purpose")
            return super().compute_loss(batch)

    with pytest.raises(RuntimeError, match="on purpose"):
        train(core_of(kind=Fails), callbacks=[Lines()], max_epochs=3, **SHOW)
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == ["epoch 1/3"]


@pytest.mark.parametrize("kind", [Lines, Bar])
def test_disabled_says_nothing(
    kind: type[Lines | Bar],
    core_of: Callable[..., Core],
    train: Callable[..., pl.Trainer],
    terminal: Terminal,
) -> None:
    quiet = kind()
    quiet.disable()
    train(core_of(), callbacks=[quiet], **SHOW)
    assert terminal.getvalue() == ""


# ---- bar ------------------------------------------------------------------------------------------------------------


def test_the_bar_is_drawn_by_time_not_by_step(
    core_of: Callable[..., Core], train: Callable[..., pl.Trainer], terminal: Terminal, clock: Clock
) -> None:
    train(core_of(), callbacks=[Bar()], max_epochs=20, **SHOW)
    frozen = terminal.getvalue().count("epoch")
    assert frozen == 1  # the one at the start
    seen = []

    class Ticks(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            clock.now += 0.06  # every other step is a tenth of a second after the last draw
            seen.append(clock.now)

    terminal.truncate(0)
    terminal.seek(0)
    train(core_of(), callbacks=[Ticks(), Bar()], max_epochs=2, **SHOW)
    assert terminal.getvalue().count("epoch") == pytest.approx(len(seen) / 2 + 1, abs=1)


def test_the_bar_shows_epoch_and_latest_values(
    core_of: Callable[..., Core],
    train: Callable[..., pl.Trainer],
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    core = core_of(**accuracy())
    train(core, callbacks=[Bar()], max_epochs=3, **SHOW)
    drawn = [line.strip() for line in terminal.getvalue().split("\r") if "epoch" in line]
    assert drawn[0].startswith("epoch 1/3 ")
    last = [line for line in drawn if line.startswith("epoch 3/3 ")][-1]
    # by then the recorder knew of the second epoch
    known = core.recorder.history[1].metrics
    assert f"val/loss {known['val/loss']:.4f}" in last
    assert f"val/accuracy {known['val/accuracy']:.4f}" in last
    assert any("validation 1/3" in line for line in drawn)
    assert all(len(line) <= 120 for line in drawn)


def test_the_bar_is_gone_at_the_end(
    core_of: Callable[..., Core], train: Callable[..., pl.Trainer], terminal: Terminal
) -> None:
    train(core_of(), callbacks=[Bar()], **SHOW)
    assert terminal.getvalue().split("\r")[-2].strip() == ""


def test_the_bar_is_gone_before_an_error(
    core_of: Callable[..., Core], train: Callable[..., pl.Trainer], terminal: Terminal
) -> None:
    class Fails(Core):
        def compute_loss(self, batch: Any) -> Any:
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        train(core_of(kind=Fails), callbacks=[Bar()], **SHOW)
    assert terminal.getvalue().split("\r")[-2].strip() == ""


def test_the_bar_of_a_run_without_end_counts(
    core_of: Callable[..., Core], train: Callable[..., pl.Trainer], terminal: Terminal
) -> None:
    class Stops(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            trainer.should_stop = True

    train(core_of(), callbacks=[Bar(), Stops()], max_epochs=-1, **SHOW)
    assert re.search(r"epoch 1  0 steps", terminal.getvalue())


def test_progress_reads_no_tensor(
    core_of: Callable[..., Core],
    train: Callable[..., pl.Trainer],
    terminal: Terminal,
    weights: Callable[[Core], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, watched = core_of(), core_of()
    reads: list[int] = []
    item, tolist = torch.Tensor.item, torch.Tensor.tolist

    def counted(read: Any) -> Any:
        return lambda self: (reads.append(1), read(self))[1]

    monkeypatch.setattr(torch.Tensor, "item", counted(item))
    monkeypatch.setattr(torch.Tensor, "tolist", counted(tolist))
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    train(plain)
    without = len(reads)
    train(watched, callbacks=[Bar()], **SHOW)
    assert len(reads) == 2 * without
    assert torch.equal(weights(plain), weights(watched))


def test_prints_above_the_bar(terminal: Terminal) -> None:
    Bar().print("a", 1, sep="-")
    assert terminal.getvalue() == "a-1\n"


# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (0.5, "0.5000"),
        (9.99999, "10.0000"),
        (12.3456, "12.346"),
        (1234.5678, "1234.6"),
        (0.00012, "1.2e-04"),
        (12345.0, "1.2e+04"),
        (-0.25, "-0.2500"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.004, "0.00 s"), (9.5, "9.50 s"), (59.94, "59.9 s"), (59.99, "1 min 00 s"), (60, "1 min 00 s")]
    + [(3599.6, "1 h 00 min"), (86400, "24 h 00 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_shown_leaves_out_what_does_not_fit() -> None:
    values = {"train/loss": 1.0, "val/loss": 2.0, "val/accuracy": 0.5, "gap/loss": 1.0}
    assert shown(values, 40) == "train/loss 1.0000  val/loss 2.0000"
    assert shown(values, 10) == ""
    assert shown({}, 40) == ""
