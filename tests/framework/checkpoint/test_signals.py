"""Ctrl-C and SIGTERM while a run trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

from framework import Core, Recipe, fit
from framework.checkpoint import signals
from framework.checkpoint.file import read_checkpoint
from framework.checkpoint.saving import Checkpoints
from framework.checkpoint.signals import Signals
from framework.cli import main as cli
from framework.run.result import Interrupted
from framework.run.summary import summarize
from plugins.early_stopping import EarlyStopping
from tests.children import at_call, in_child, send

MakeRecipe = Callable[..., Recipe]
Interrupt = Callable[..., None]
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Look that each test leaves the handlers of before."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Return a function that has this process sent a signal at the n-th call of a function."""

    def arrange(number: int, owner: Any, name: str, times: int, **options: Any) -> None:
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
        at_call(owner, name, times, send(number), **options)

    return arrange


def caught(run: Callable[[], Any]) -> Interrupted:
    with pytest.raises(Interrupted) as told:
        run()
    return told.value


# ---- once ------------------------------------------------------------------------------------------------------------


@BOTH
def test_the_step_is_finished_saved_and_reported(
    recipe: MakeRecipe, number: int, interrupt: Interrupt, tmp_path: Path
) -> None:
    interrupt(number, Core, "training_step", 10)
    end = caught(lambda: fit(recipe, logs=tmp_path, trainer={"max_epochs": 3}))
    assert end.number == number
    assert (end.run.status, end.run.steps, end.run.epochs) == ("interrupted", 10, 1)
    saved = read_checkpoint(end.run.last_checkpoint or "")
    assert (saved["global_step"], saved["epoch"]) == (10, 1)
    assert end.run.folder is not None
    assert json.loads((end.run.folder / "run.json").read_text())["status"] == "interrupted"
    assert "digits_mlp: interrupted after 1 of 3 epochs" in summarize(end.run)


@BOTH
def test_the_best_parameters_come_back(recipe: MakeRecipe, number: int, interrupt: Interrupt, tmp_path: Path) -> None:
    interrupt(number, Core, "training_step", 18)
    made = recipe([EarlyStopping(patience=9, mode="max")], mode="max")  # the first is the best
    run = caught(lambda: fit(made, logs=tmp_path, trainer={"max_epochs": 5})).run
    best, last = (read_checkpoint(path or "")["state_dict"] for path in (run.best, run.last_checkpoint))
    assert read_checkpoint(run.best or "")["global_step"] == 7
    for name, weight in run.core.model.named_parameters():
        assert torch.equal(weight, best[f"model.{name}"])
    assert not torch.equal(last["model.0.weight"], best["model.0.weight"])


@BOTH
@pytest.mark.parametrize(
    ("owner", "name", "times", "steps"),
    [
        (Core, "validation_step", 2, 7),  # at the epoch's end
        (Core, "on_train_epoch_end", 1, 7),
        (Core, "on_validation_start", 2, 14),
        (Checkpoints, "_save", 1, 7),  # while it writes
        (Core, "on_train_epoch_start", 2, 8),
        (Core, "configure_optimizers", 1, 1),
        (Core, "on_fit_start", 1, 1),
    ],
)
def test_at_any_moment_training_ends_after_a_checkpoint_at_the_next_chance(
    recipe: MakeRecipe,
    number: int,
    owner: Any,
    name: str,
    times: int,
    steps: int,
    interrupt: Interrupt,
    tmp_path: Path,
) -> None:
    interrupt(number, owner, name, times)
    end = caught(lambda: fit(recipe(), logs=tmp_path, trainer={"max_epochs": 3}))
    assert (end.number, end.run.steps) == (number, steps)
    assert read_checkpoint(end.run.last_checkpoint or "")["global_step"] == steps


@pytest.mark.parametrize("every", [1, 3])
def test_in_a_validation_within_an_epoch(recipe: MakeRecipe, every: int, interrupt: Interrupt, tmp_path: Path) -> None:
    interrupt(signal.SIGTERM, Core, "validation_step", 2)
    run = caught(lambda: fit(recipe(), logs=tmp_path, trainer={"val_check_interval": every})).run
    assert run.steps == every
    assert read_checkpoint(run.last_checkpoint or "")["global_step"] == every


@BOTH
def test_in_the_check_of_the_validation_part(
    recipe: MakeRecipe, number: int, interrupt: Interrupt, tmp_path: Path
) -> None:
    """Lightning's own handler for SIGTERM would end the process with code 0."""
    interrupt(number, Core, "validation_step", 1)
    end = caught(lambda: fit(recipe(), logs=tmp_path, trainer={"num_sanity_val_steps": 2}))
    assert (end.number, end.run.steps) == (number, 1)


def test_sigterm_where_lightnings_handler_is_in(recipe: MakeRecipe, interrupt: Interrupt, tmp_path: Path) -> None:
    interrupt(signal.SIGTERM, _SignalConnector, "register_signal_handlers", 1, after=True)
    end = caught(lambda: fit(recipe(), logs=tmp_path))
    assert end.number == signal.SIGTERM
    assert end.run.status == "interrupted"


@BOTH
def test_where_nothing_is_kept(recipe: MakeRecipe, number: int, interrupt: Interrupt) -> None:
    interrupt(number, Core, "training_step", 3)
    end = caught(lambda: fit(recipe(), logs=None))
    assert (end.number, end.run.steps, end.run.folder) == (number, 3, None)


def test_in_a_later_phase(recipe: MakeRecipe, interrupt: Interrupt, tmp_path: Path) -> None:
    interrupt(signal.SIGTERM, Core, "training_step", 7 * 2 + 3)
    end = caught(lambda: fit(recipe([EarlyStopping(then="retrain")]), logs=tmp_path, trainer={"max_epochs": 2}))
    assert [(phase.name, phase.status, phase.steps) for phase in end.run.phases] == [("retrain", "interrupted", 3)]
    assert (end.number, end.run.status, end.run.steps) == (signal.SIGTERM, "interrupted", 14)
    assert end.run.folder is not None
    assert read_checkpoint(end.run.folder / "checkpoints" / "retrain.ckpt")["global_step"] == 3


def test_a_run_that_is_over_all_the_same_is_finished(recipe: MakeRecipe, interrupt: Interrupt, tmp_path: Path) -> None:
    interrupt(signal.SIGINT, Core, "teardown", 1)
    assert fit(recipe(), logs=tmp_path).status == "finished"


# ---- twice -----------------------------------------------------------------------------------------------------------


@BOTH
def test_the_second_one_ends_training_within_the_step(
    recipe: MakeRecipe, number: int, interrupt: Interrupt, tmp_path: Path
) -> None:
    interrupt(number, Core, "training_step", 10)
    interrupt(signal.SIGINT, Core, "compute_loss", 7 + 3 + 3)  # the tenth step's, after three of a validation
    run = caught(lambda: fit(recipe(), logs=tmp_path, trainer={"max_epochs": 3})).run
    assert (run.status, run.steps) == ("interrupted", 9)
    assert read_checkpoint(run.last_checkpoint or "")["global_step"] == 7
    again = fit(recipe(), logs=tmp_path, resume=True)
    alone = fit(recipe(), logs=None, trainer={"max_epochs": 3})
    assert again.metrics == alone.metrics


def test_the_second_one_while_the_checkpoint_is_written(
    recipe: MakeRecipe, interrupt: Interrupt, tmp_path: Path
) -> None:
    interrupt(signal.SIGINT, Core, "training_step", 10)
    interrupt(signal.SIGINT, os, "fsync", 3)  # a file and its folder by the end of the first epoch
    run = caught(lambda: fit(recipe(), logs=tmp_path, trainer={"max_epochs": 3})).run
    assert run.last_checkpoint is not None
    assert read_checkpoint(run.last_checkpoint)["global_step"] == 7
    assert not list(run.last_checkpoint.parent.glob(".*"))


def test_a_third_one_meets_nobody() -> None:
    def three() -> None:
        with Signals():
            send(signal.SIGTERM)()
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGTERM)()
            send(signal.SIGTERM)()

    assert in_child(three) == -signal.SIGTERM


# ---- handlers --------------------------------------------------------------------------------------------------------


def test_handlers_are_put_back_whatever_happens(recipe: MakeRecipe, tmp_path: Path) -> None:
    def mine(*_: Any) -> None: ...

    def put_back() -> None:
        for handler in (mine, signal.SIG_IGN, signal.SIG_DFL):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, handler)
            with pytest.raises(ArithmeticError), Signals():
                raise ArithmeticError
            assert {signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} == {handler}
            fit(recipe(), logs=tmp_path)
            assert {signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} == {handler}

    assert in_child(put_back) == 0


def test_outside_of_the_main_thread_handlers_are_left_alone(recipe: MakeRecipe, tmp_path: Path) -> None:
    runs, before = [], signal.getsignal(signal.SIGINT)
    seen = set()

    class Look(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.add(signal.getsignal(signal.SIGINT))

    made = recipe()
    thread = threading.Thread(target=lambda: runs.append(fit(made, logs=tmp_path, trainer={"callbacks": [Look()]})))
    thread.start()
    thread.join()
    assert [run.status for run in runs] == ["finished"]
    assert seen == {before}


# ---- what ranks say to one another -----------------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace a second rank, whose note is the one given, and the clock."""
    other = {"note": [0.0, 0.0], "now": 0.0, "asked": 0}

    def all_reduce(notes: Any, op: Any) -> None:
        assert op == torch.distributed.ReduceOp.MAX
        other["asked"] += 1
        torch.maximum(notes, torch.tensor(other["note"]), out=notes)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: other["now"]))
    return other


def test_one_rank_answers_at_every_step() -> None:
    alone = Signals()
    assert [alone.agreed(1, CPU)[0] for _ in range(3)] == [None, None, None]  # type: ignore[index]
    alone.received = 15
    assert alone.agreed(1, CPU)[0] == 15  # type: ignore[index]


def test_ranks_compare_notes_about_once_a_second(two: dict[str, Any]) -> None:
    ranks = Signals()
    for _ in range(2000):
        two["now"] += 0.01
        ranks.agreed(2, CPU)
    # after 1, 1 + 2, ... steps, doubling until they take a second
    assert 20 + 1 <= two["asked"] <= 20 + 8


def test_slow_steps_compare_notes_each(two: dict[str, Any]) -> None:
    ranks = Signals()
    for _ in range(50):
        two["now"] += 3.0
        assert ranks.agreed(2, CPU) == (None, 3.0)
    assert two["asked"] == 50


def test_what_one_rank_received_all_ranks_learn(two: dict[str, Any]) -> None:
    ranks = Signals()
    two["note"] = [15.0, 2.0]
    assert ranks.agreed(2, CPU) == (15, 2.0)
    assert (ranks.received, ranks.shared) == (None, 15)


def test_notes_are_compared_at_once_where_that_is_asked_for(two: dict[str, Any]) -> None:
    ranks = Signals()
    ranks.agreed(2, CPU)
    asked = two["asked"]
    for _ in range(5):
        assert ranks.agreed(2, CPU, now=True) is not None
    assert two["asked"] == asked + 5


# ---- the command line ------------------------------------------------------------------------------------------------

SLOW = '''
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from framework import Data, Plugin, Recipe


class Slow(Plugin):
    """Waits after a step for the test that watches it, and reports its step."""

    def after_update(self, step):
        Path(f"pid.{step.rank}").write_text(str(os.getpid()))
        Path(f"step.{step.rank}").write_text(str(step.index + 1))
        time.sleep(0.02)


def recipe() -> Recipe:
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    data = Data((x, (x.sum(1) > 0).long()), (x[:40], (x[:40].sum(1) > 0).long()), batch_size=4)
    return Recipe(nn.Linear(4, 2), data, loss=cross_entropy, plugins=[Slow()], trainer={"accelerator": "cpu"})
'''


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    for name in ("LOCAL_RANK", "FRAMEWORK_RUN_FOLDER", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK"):
        environment.pop(name, None)
    (folder / "slow.py").write_text(SLOW)
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(process: subprocess.Popen[str], folder: Path, ranks: int = 1) -> None:
    """Wait until each rank has made some steps."""
    end = time.monotonic() + 300
    while not all((folder / f"step.{rank}").exists() for rank in range(ranks)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def no_process_of(session: int) -> bool:
    """Return whether all processes of a session are gone, within a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def last_of(folder: Path) -> Path:
    return folder / "lightning_logs" / "slow" / "version_0" / "checkpoints" / "last.ckpt"


FIT = ("-m", "framework", "fit", "slow.py", "--trainer.max_epochs", "20")
DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def told(process: subprocess.Popen[str], code: int) -> str:
    out = process.communicate(timeout=300)[0]
    assert process.returncode == code, out
    assert "Traceback" not in out
    return out


@BOTH
def test_the_exit_code_is_that_of_the_signal(number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slow.py").write_text(SLOW)

    def command() -> None:
        os.chdir(tmp_path)
        at_call(Core, "training_step", 5, send(number))
        os._exit(cli.main(list(FIT[2:])))

    assert in_child(command) == 128 + number
    out, err = capfd.readouterr()
    assert "slow: interrupted after 0 of 20 epochs" in out
    assert "framework fit slow.py --resume\n" in out
    assert "Traceback" not in err
    assert read_checkpoint(last_of(tmp_path))["global_step"] == 5


@BOTH
@pytest.mark.slow
def test_a_process_of_its_own_ends_so(number: int, tmp_path: Path) -> None:
    process = start(tmp_path, *FIT)
    wait_for_step(process, tmp_path)
    process.send_signal(number)
    assert "slow: interrupted" in told(process, 128 + number)
    assert read_checkpoint(last_of(tmp_path))["global_step"] == int((tmp_path / "step.0").read_text())


# ---- two ranks that Lightning launches -------------------------------------------------------------------------------


def step_of_both(folder: Path) -> int:
    """Return the step at which both ranks ended, which is that of the checkpoint."""
    steps = {int((folder / f"step.{rank}").read_text()) for rank in (0, 1)}
    assert steps == {read_checkpoint(last_of(folder))["global_step"]}
    return steps.pop()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "whom"), [(15, "main"), (15, "rank 1"), (2, "all")])
def test_two_ranks_end_at_the_same_step_whichever_gets_the_signal(number: int, whom: str, tmp_path: Path) -> None:
    process = start(tmp_path, *FIT, *DDP)
    wait_for_step(process, tmp_path, 2)
    if whom == "all":
        os.killpg(process.pid, number)
    elif whom == "main":
        process.send_signal(number)
    else:
        os.kill(int((tmp_path / "pid.1").read_text()), number)
    out = told(process, 128 + number)
    assert out.count("slow: interrupted after") == 1
    assert no_process_of(process.pid)
    step = step_of_both(tmp_path)
    assert step > 0
    resumed = start(tmp_path, *FIT, *DDP, "--resume", "--trainer.max_steps", str(step + 3))
    assert f"from last.ckpt: epoch {step // 50 + 1}, step {step}" in told(resumed, 0)
    assert step_of_both(tmp_path) == step + 3


@pytest.mark.slow
def test_two_signals_end_two_ranks_at_once_and_the_run_resumes(tmp_path: Path) -> None:
    process = start(tmp_path, *FIT, *DDP, "--checkpoint-steps", "5")
    wait_for_step(process, tmp_path, 2)
    while not last_of(tmp_path).exists():
        time.sleep(0.05)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.005)  # two of a kind at once are one
    told(process, 128 + signal.SIGTERM)
    assert no_process_of(process.pid)
    step = read_checkpoint(last_of(tmp_path))["global_step"]
    resumed = start(tmp_path, *FIT, *DDP, "--resume", "--trainer.max_steps", str(step + 3))
    told(resumed, 0)
    assert step_of_both(tmp_path) == step + 3


GOES_ON = """
import os
import sys
import time

from framework import fit
from framework.run.result import Interrupted
from slow import recipe

if __name__ == "__main__":
    try:
        fit(recipe, trainer={"max_epochs": 20, "devices": 2, "strategy": "ddp"})
    except Interrupted as end:
        if os.environ["LOCAL_RANK"] == "1":
            sys.exit(128 + end.number)
        time.sleep(7)  # longer than it takes Lightning to notice that
        print("went on after", end.number)
"""


@pytest.mark.slow
def test_a_program_that_continues_after_an_interrupt_is_left_alone(tmp_path: Path) -> None:
    """Lightning kills a process whose ranks ended by another code than 0, as one does that minds the signal itself."""
    (tmp_path / "goes_on.py").write_text(GOES_ON)
    process = start(tmp_path, "goes_on.py")
    wait_for_step(process, tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    assert "went on after 15" in told(process, 0)
    assert no_process_of(process.pid)
