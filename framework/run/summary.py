"""The summary printed at the end of a run: how far it went, its metrics, and useful next commands."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from framework.engine.attribution import Attribution
from framework.ops.patterns import parameter_counts
from framework.report.progress import duration, number
from framework.report.table import table

if TYPE_CHECKING:
    from framework.run.result import Run

_WIDTH = 100
_ENDS = {"finished": "finished", "stopped": "stopped early", "interrupted": "interrupted", "failed": "failed"}


def summarize(run: Run) -> str:
    """Return the summary of a run as text, in lines of at most 100 characters unless its paths are longer.

    Args:
        run: a run that ended, in whatever way.
    """
    parts = [_heading(run), _metrics(run), _attribution(run), _size(run), *_phases(run), _next(run)]
    return "\n\n".join(part for part in parts if part)


def _heading(run: Run) -> str:
    # the Trainer of a later phase has its own max_epochs
    planned = run.core.trainer.max_epochs if run.core._trainer is not None and not run.phases else None
    epochs = f"{run.epochs} of {planned} epochs" if planned and planned > run.epochs else _count(run.epochs, "epoch")
    text = f"{run.name}: {_ENDS[run.status]} after {epochs}"
    if run.best_epoch is not None:
        text += f", best was epoch {run.best_epoch + 1} by {run.recipe.monitor}"
    return text


def _metrics(run: Run) -> str:
    """Return the table of metrics: the monitored one first, then validation, training and the gap between them."""
    families = ("val/", "train/", "gap/")
    tags = [tag for family in families for tag in sorted(run.metrics, key=_loss_first) if tag.startswith(family)]
    if run.recipe.monitor in run.metrics:
        tags = [run.recipe.monitor, *(tag for tag in tags if tag != run.recipe.monitor)]
    columns = {"last": run.last}
    if run.best_epoch is not None and run.metrics != run.last:
        columns = {f"best (epoch {run.best_epoch + 1})": run.metrics, f"last (epoch {run.epochs})": run.last}
    rows = [[tag, *(_cell(values.get(tag)) for values in columns.values())] for tag in tags]
    return table(rows, ["metric", *columns], width=_WIDTH) if rows else ""


def _attribution(run: Run) -> str:
    """Return the table of what each plugin did, the means over all looks; empty without any."""
    looks = [one for one in run.recipe.plugins if isinstance(one, Attribution)]
    means = looks[0].means if looks else {}
    kinds = ("share", "cosine", "change", "edit", "time")
    names = dict.fromkeys(tag.split("/", 1)[1].rpartition("/")[0] for tag in means)
    rows = [[name, *(_cell(means.get(f"attribution/{name}/{kind}")) for kind in kinds)] for name in names]
    head = ["plugin", "share", "cosine", "change", "edit", "time"]
    return table(rows, head, width=_WIDTH) if rows else ""


def _size(run: Run) -> str:
    total, trained = parameter_counts(run.core.model)
    parts = [_count(run.steps, "step"), duration(run.seconds), _count(total, "parameter")]
    if run.skipped:
        parts[0] += f" ({run.skipped:,} skipped, not finite)"
    if trained != total:
        parts[-1] += f" ({trained:,} trained)"
    return "  " + ", ".join(parts) + (f"\n  {_path(run.folder)}" if run.folder is not None else "")


def _phases(run: Run) -> list[str]:
    return [
        f"  then {phase.name}: {_ENDS[phase.status]} after {_count(phase.epochs, 'epoch')}, on training and validation"
        f" part together, {duration(phase.seconds)}"
        for phase in run.phases
    ]


def _next(run: Run) -> str:
    if run.folder is None:
        return ""
    logs = run.folder.parent.parent
    commands = []
    elsewhere = "" if _path(logs) == "lightning_logs" else f" --logs {shlex.quote(_path(logs))}"
    if run.file is not None and run.status == "interrupted" and run.last_checkpoint is not None:
        commands.append(f"{_program('python')} -m framework fit {shlex.quote(str(run.file))} --resume{elsewhere}")
    if run.file is not None and run.recipe.data.test is not None and run.best is not None:
        commands.append(f"{_program('python')} -m framework test {shlex.quote(str(run.file))}{elsewhere}")
    commands.append(f"{_program('tensorboard')} --logdir {shlex.quote(_path(logs))}")
    return "Next:\n" + "\n".join(f"  {command}" for command in commands)


def _program(name: str) -> str:
    """Return the command for a program of this environment: its name if the shell finds the same one, else its path."""
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if found and Path(found).parent.samefile(own.parent) else _path(own)


def _path(path: Path) -> str:
    """Return a path relative to the working directory if it lies in it, else the absolute path."""
    full = path.absolute()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else number(value):>7}"  # room for a minus


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _loss_first(tag: str) -> tuple[bool, str]:
    return not tag.endswith("/loss"), tag
