"""Runs of different settings, made by one process or several, of which each may be killed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.checkpoint.folder import ENDED, RunFolder
from framework.checkpoint.lock import Lock
from framework.errors import one_line
from framework.tune.order import Order
from framework.tune.peak import measured
from framework.tune.runs import Trained
from framework.tune.trial import ended_run

_ERROR, _RUN = "error.json", "run"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Args:
        folder: its folder, of its own.
        seed: its seed.
        chosen: what it changes in the recipe: ``parameters``, ``settings``, ``without``.
    """

    folder: Path
    seed: int
    chosen: Mapping[str, Any]


def work(order: Order, jobs: Sequence[Job], tell: Callable[[Job], None] | None = None) -> None:
    """Make the runs that no other process makes or has made; what was begun is resumed.

    The process that makes a run holds the lock in its folder, which the system releases if it is killed. A run that
    fails leaves its error, and the others go on.

    Args:
        order: the recipe and the changes that all runs have.
        jobs: the runs.
        tell: called with each run that ended here.
    """
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(job.folder)
        if ended(order, job) is not None or not lock.take():
            continue
        try:
            _make(order, job)
        finally:
            lock.leave()
        if tell is not None:
            tell(job)


def _make(order: Order, job: Job) -> None:
    try:
        with measured() as peak:
            record = ended_run(order, job.folder / _RUN, job.seed, order.overrides(job.chosen))
    except Exception as error:  # whatever a setting leads to, the others go on
        text = {"error": f"{type(error).__name__}: {one_line(error)}"}
        (job.folder / _ERROR).write_text(json.dumps(text), encoding="utf-8")
        return
    RunFolder(_version(order, job)).update(memory=None if record.get("resumed") else peak.bytes)


def ended(order: Order, job: Job) -> Trained | None:
    """Return a job's run if it has ended and its memory was noted, else None."""
    path = _version(order, job)
    if not (path / "run.json").exists():
        return None
    record = RunFolder(path).read()
    return Trained(path, record) if record["status"] in ENDED and "memory" in record else None


def forget_errors(jobs: Sequence[Job]) -> None:
    """Forget by what errors runs failed in an earlier command: they are tried again."""
    for job in jobs:
        (job.folder / _ERROR).unlink(missing_ok=True)


def error_of(job: Job) -> str | None:
    """Return the error by which a job's run failed, None if it did not."""
    path = job.folder / _ERROR
    return str(json.loads(path.read_text(encoding="utf-8"))["error"]) if path.exists() else None


def _version(order: Order, job: Job) -> Path:
    return job.folder / _RUN / order.spec({}).name / "version_0"


def main(order: Order, jobs: Sequence[Job]) -> None:
    """Make runs in a process of its own, see :func:`work`."""
    order.build()
    work(order, jobs)
