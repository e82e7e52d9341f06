"""Kills a run at random moments and resumes it, again and again, and compares it with an uninterrupted run.

All bundled plugins take part. Weights, states of optimizer and plugins, metrics and TensorBoard's curves must be
the same bits. ``python -m tests.soak --seconds 300`` or ``make soak``; exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import albumentations as A
import torch
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from framework import Core, Data, Plugin, Recipe, Step, fit
from framework.checkpoint import file as checkpoint_file
from framework.checkpoint.folder import RunFolder
from framework.checkpoint.resume import start_of
from framework.report.table import table
from plugins.activation_sparsity import ActivationSparsity
from plugins.adversarial import Adversarial
from plugins.augmentation import Augmentation
from plugins.cut_mix import CutMix
from plugins.cutout import Cutout
from plugins.early_stopping import EarlyStopping
from plugins.hidden_noise import HiddenNoise
from plugins.input_noise import InputNoise
from plugins.mixup import Mixup
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.sam import SAM
from plugins.schedule import Schedule
from plugins.strength_schedule import StrengthSchedule
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise

# workers, ranks, who evaluates twice, which only one plugin may, and least seconds between files at ends of epochs:
# so few or many that the clock changes nothing
Setting = tuple[int, int, str, float]
SETTINGS: list[Setting] = [(0, 1, "sam", 600), (1, 1, "adversarial", 0), (2, 1, "sam", 600), (0, 2, "adversarial", 600)]
EPOCHS = 4
KILLS = 8  # of one run
MOMENTS = ("clock", "step", "micro-batch", "update", "validation", "writing", "naming")


class Killer(Plugin):
    """Kills its process at the n-th time that one moment comes.

    Args:
        moment: one of ``MOMENTS``; ``"clock"`` is left to others, and ``"never"`` to nobody.
        times: how often it comes before.
    """

    moment: str = "never"
    times: int = 0

    def attach(self, core: Core) -> None:
        self.left_ = self.times
        if self.moment in ("writing", "naming"):
            self._spoil()

    def begin_step(self, step: Step) -> None:
        self._count("step")

    def penalty(self, step: Step) -> None:
        self._count("micro-batch")

    def after_update(self, step: Step) -> None:
        self._count("update")

    def on_validation_batch_start(self, *_: Any) -> None:
        self._count("validation")

    def _count(self, moment: str) -> None:
        if moment == self.moment:
            self.left_ -= 1
            if self.left_ < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def _spoil(self) -> None:
        """Die with a checkpoint half written, or with one written that has not got its name yet."""
        write, replace = torch.save, Path.replace

        def save(content: Any, file: Any, **options: Any) -> None:
            if options:  # ranks send one another tensors by the same function
                write(content, file, **options)
                return
            if self.moment == "writing" and self.left_ <= 0:
                file.write(b"half of a file")
                file.flush()
            self._count("writing")
            write(content, file)

        def move(source: Path, target: Any) -> Path:
            if Path(target).suffix == ".ckpt":
                self._count("naming")
            return replace(source, target)

        checkpoint_file.torch.save = save  # type: ignore[attr-defined] # in a process of its own
        Path.replace = move  # type: ignore[method-assign,assignment]


def recipe(workers: int, killer: Killer, second: str) -> Recipe:
    """Return the recipe that is killed."""
    images, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(classes)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(288, 10)
    )
    plugins: list[Any] = [
        Augmentation(sample=A.Affine(rotate=15, p=1.0)),
        Cutout(2),
        InputNoise(0.1),
        Mixup(0.2, probability=0.5),
        CutMix(probability=0.5),
        HiddenNoise("ReLU", std=0.1),
        ActivationSparsity(1e-4, "ReLU"),
        Adversarial(eps=0.05, kind="vat") if second == "adversarial" else SAM(rho=0.01),
        NormPenalty(1e-3),
        WeightNoise(0.01),
        StrengthSchedule("norm_penalty.alpha", start=0.0, until=0.5),
        WeightAverage(decay=0.9),
        Optimizer("AdamW", lr=1e-2),
        Schedule("one_cycle"),
        EarlyStopping(patience=2),
        killer,
    ]
    return Recipe(
        model,
        Data((x[:330], y[:330]), (x[330:500], y[330:500]), batch_size=16, eval_batch_size=64, workers=workers),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": MulticlassAccuracy(10)},
        plugins=plugins,
    )


def in_child(run: Callable[[], object], errors: Path, seconds: float) -> int:
    """Return the wait status of a function run in a process of its own, forked to spare its imports.

    Args:
        run: the function.
        errors: file for what it prints.
        seconds: when the process and all that it started are killed.
    """
    child = os.fork()
    if child == 0:
        os.setsid()
        printed = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.stdout = sys.stderr = os.fdopen(printed, "w", buffering=1)  # pytest has others in their place
        code = 1
        try:
            run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end, status = time.monotonic() + seconds, (0, 0)
    while status[0] == 0 and time.monotonic() < end:
        time.sleep(0.001)
        status = os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # of a run that was killed, its workers and ranks as well
    return status[1] if status[0] else os.waitpid(child, 0)[1]


def train(logs: Path, killer: Killer, setting: Setting, *, resume: bool, seconds: float = 600.0) -> int:
    """Train in a process of its own, and return its wait status."""
    workers, ranks, second, apart = setting

    def run() -> None:
        fit(
            lambda: recipe(workers, killer, second),
            logs=logs,
            resume=resume,
            checkpoint_steps=3,
            checkpoint_seconds=apart,
            trainer={
                "max_epochs": EPOCHS,
                "accumulate_grad_batches": 2,
                "log_every_n_steps": 2,
                "val_check_interval": 0.5,
                "accelerator": "cpu",
                "enable_progress_bar": False,
                **({"devices": ranks, "strategy": "ddp_fork"} if ranks > 1 else {}),
            },
        )

    return in_child(run, logs / "printed", seconds)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return where two nested values are not the same bits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [d for key in {**one, **other} for d in differences(one.get(key), other.get(key), f"{where}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{where}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    return [] if one == other or (one != one and other != other) else [f"{where}: {one} and {other}"]


def left_by(logs: Path) -> dict[str, Any]:
    """Return all that a run leaves, without times and names of processes."""
    (folder,) = logs.glob("*/version_*")
    found: dict[str, Any] = {"files": sorted(path.name for path in (folder / "checkpoints").iterdir())}
    for path in (folder / "checkpoints").glob("*.ckpt"):
        found[path.name] = content = torch.load(path, weights_only=True)
        for name in ("seconds", "events"):
            content["callbacks"]["checkpoints"].pop(name)
    record = json.loads((folder / "run.json").read_text())
    found["run"] = {key: record[key] for key in ("status", "metrics", "last", "best_epoch", "epochs", "steps")}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    found["scalars"] = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    found["histograms"] = {
        tag: [(e.step, list(e.histogram_value.bucket)) for e in events.Histograms(tag)] for tag in tags["histograms"]
    }
    found["images"] = {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]}
    found["layouts"] = sorted(tags["tensors"])
    return found


class Alone(NamedTuple):
    """The run that nobody kills."""

    name: str
    seconds: float
    left: dict[str, Any]


def alone(logs: Path, setting: Setting) -> Alone:
    """Train without kills."""
    logs.mkdir()
    began = time.monotonic()
    if train(logs, Killer("never"), setting, resume=False) != 0:
        raise RuntimeError((logs / "printed").read_text())
    (run_json,) = logs.glob("*/version_*/run.json")
    return Alone(run_json.parent.parent.name, time.monotonic() - began, left_by(logs))


def once(logs: Path, left_alone: Alone, setting: Setting, rng: random.Random, kills: Counter[str]) -> int:
    """Train with kills at random moments until the run ends by itself; return how many things differ."""
    logs.mkdir()
    resume, done = False, 0
    while True:
        moment = rng.choice(MOMENTS) if done < KILLS else "never"
        kill = Killer(moment, times=rng.randrange({"validation": 6, "writing": 6, "naming": 12}.get(moment, 20)))
        seconds = rng.uniform(0.1, 0.7) * left_alone.seconds if moment == "clock" else 600.0
        status = train(logs, kill, setting, resume=resume, seconds=seconds)
        if status == 0:
            break
        # of several ranks one tells that another was killed
        if not os.WIFSIGNALED(status) and "SIGKILL" not in (logs / "printed").read_text():
            raise RuntimeError((logs / "printed").read_text())
        kills[moment] += 1
        done += 1
        runs = RunFolder.all(logs, left_alone.name)
        resume = bool(runs) and start_of(runs[0]) is not None
        if runs and not resume:
            shutil.rmtree(runs[0].path)
    found = differences(left_alone.left, left_by(logs))
    for line in found[:10]:
        print("differs:", line)
    return len(found)


def soak(seconds: float, seed: int) -> int:
    """Run until the time is over, print what was killed and what differs, and return how many things differ."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    known: dict[Setting, Alone] = {}
    runs, wrong, kills = Counter[Setting](), Counter[Setting](), {setting: Counter[str]() for setting in SETTINGS}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for turn, setting in enumerate(itertools.cycle(SETTINGS)):
            if time.monotonic() > end and turn >= len(SETTINGS):
                break
            if setting not in known:
                known[setting] = alone(home / f"alone_{turn}", setting)
            runs[setting] += 1
            wrong[setting] += once(home / f"killed_{turn}", known[setting], setting, rng, kills[setting])
            shutil.rmtree(home / f"killed_{turn}")
    rows = [
        [*map(str, setting), str(runs[setting]), *(str(kills[setting][one]) for one in MOMENTS), str(wrong[setting])]
        for setting in SETTINGS
    ]
    print(table(rows, ["workers", "ranks", "with", "seconds", "runs", *MOMENTS, "differences"]))
    print(f"{sum(one.total() for one in kills.values())} kills, each resumed; {wrong.total()} differences")
    return wrong.total()


def main() -> int:
    """Run the soak for a while."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300, help="how long; each setting has a turn at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    return 1 if soak(given.seconds, given.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
