"""Resume a run: which run, which checkpoint, and what changed since."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.utilities import rank_zero_info

from framework.checkpoint.events import sizes_of, take_back
from framework.checkpoint.file import read_checkpoint
from framework.checkpoint.folder import ENDED, KEY, NEXT, RunFolder, previous
from framework.checkpoint.ranks import is_first
from framework.engine.state import BadCheckpoint
from framework.errors import UserError
from framework.settings import plain

if TYPE_CHECKING:
    from framework.engine.core import Core

# hook points whose results shape the state of the optimizer or the network
_MARKS = ("prepare_model", "group_parameters", "make_optimizer", "make_scheduler")
_CORE_BEFORE = "framework.module.Core"  # the name of framework.Core in run.json of version 0.1.0


@dataclasses.dataclass(frozen=True)
class Start:
    """The point from which a run is resumed.

    Args:
        path: the checkpoint.
        step: optimizer steps done at the checkpoint.
        epoch: epoch of the next step, from 0.
        skipped: for each newer file that is unusable, a line that says why.
        events: lengths of the run's event files at the checkpoint, by name.
        seconds: seconds of training up to the checkpoint.
    """

    path: Path
    step: int
    epoch: int
    skipped: list[str]
    events: dict[str, int]
    seconds: float


def run_to_resume(named: str | Path | None, logs: Path, name: str) -> RunFolder:
    """Return the folder of the run to resume.

    Args:
        named: the run's folder, None for the recipe's last unfinished run.
        logs: folder of all runs.
        name: the recipe's name.

    Raises:
        UserError: if there is no such run.
    """
    if (made := RunFolder.of_ranks()) is not None:
        return made
    if named is not None:
        folder = RunFolder(Path(named))
        made_by = folder.read()["recipe"]
        if made_by != name:
            raise UserError(f"--resume {named}: a run of the recipe {made_by!r}, not of {name!r}; name another run")
        return folder
    for folder in RunFolder.all(logs, name):
        try:
            status = folder.read()["status"]
        except UserError:  # the process was killed right after it made the folder
            continue
        if status not in ENDED:
            return folder
    raise UserError(
        f"--resume: no run of {name!r} in {logs} is unfinished; leave --resume out, or name a run: --resume RUN"
    )


def start_of(folder: RunFolder) -> Start | None:
    """Return the newest usable checkpoint of a run, None if none was written.

    Raises:
        UserError: if there are checkpoints but none is usable.
    """
    start, skipped = _newest(folder, ("last", previous("last"), "best"), after=0)
    if start is None and skipped:
        raise UserError(f"{folder.path}: no usable checkpoint to resume from: {'; '.join(skipped)}")
    return start


def start_of_phase(folder: RunFolder, name: str, after: int) -> Start | None:
    """Return the newest usable checkpoint of a later phase, None if it has none, and cut off what it logged since.

    Args:
        folder: the run's folder.
        name: the phase's name.
        after: optimizer steps of the run before the phase; a checkpoint with another number is of another phase.
    """
    start, skipped = _newest(folder, (name, previous(name)), after)
    if is_first():
        take_back(folder.curves(name), {} if start is None else start.events)
    instead = "starting the phase again" if start is None else f"resuming from {start.path.name}"
    for line in skipped:
        rank_zero_info(f"{line}; {instead} instead")
    return start


def _newest(folder: RunFolder, names: Iterable[str], after: int) -> tuple[Start | None, list[str]]:
    """Return the first usable one of these checkpoints, and a line on each unusable one before it."""
    skipped: list[str] = []
    for path in (folder.checkpoints / f"{name}.ckpt" for name in names):
        if not path.exists():
            continue
        try:
            content = read_checkpoint(path)
        except BadCheckpoint as error:
            skipped.append(str(error))
            continue
        kept = content["callbacks"].get(KEY)
        if kept is None:
            skipped.append(f"{path}: not written by a run")
        elif kept["after"] == after:
            # Lightning's own entry "epoch" does not count an epoch that has just ended
            epoch = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
            return Start(path, content["global_step"], epoch, skipped, kept["events"], kept["seconds"]), skipped
    return None, skipped


def curves_in(folder: RunFolder) -> set[str]:
    """Return the names of the event files that a run has so far."""
    return set(sizes_of(folder.path, ()))


def clear(folder: RunFolder, start: Start, curves: Collection[str]) -> None:
    """Remove what an interrupted run left behind: unfinished files, and what it logged after the checkpoint.

    Args:
        folder: the run's folder.
        start: the checkpoint.
        curves: names of the event files from before the resume; others are the resumed run's own.
    """
    for path in [folder.checkpoints / f"{NEXT}.ckpt", *folder.checkpoints.glob(".*.tmp")]:
        path.unlink(missing_ok=True)
    folder.take_back_hand_over()
    own = {name: size for name, size in sizes_of(folder.path, ()).items() if name not in curves}
    take_back(folder.path, {**start.events, **{name: max(size, 1) for name, size in own.items()}})


def check_unchanged(folder: RunFolder, before: Mapping[str, Any], now: Mapping[str, Any], core: Core) -> list[str]:
    """Return what changed since the run was started, a line for each harmless change.

    Args:
        folder: the run's folder.
        before: the content of ``run.json``.
        now: the content that the resumed run will write.
        core: the core of the resumed run.

    Raises:
        UserError: if a change would give the checkpoint's content another meaning.
    """
    now = plain(now)
    if before.get("core") == _CORE_BEFORE:
        before = {**before, "core": "framework.Core"}
    marks = {plugin.name for point in _MARKS for plugin in core.answers.of(point)}
    old, new = _plugins(before), _plugins(now)
    breaking = []
    if list(old) != list(new):
        breaking.append(f"plugins: {_names(old)} → {_names(new)}")
    for name in old.keys() & new.keys():
        if old[name]["class"] != new[name]["class"]:
            breaking.append(f"{name}: {old[name]['class']} → {new[name]['class']}")
    settings = {
        name: _changes(old[name].get("settings", {}), new[name].get("settings", {}), name)
        for name in new
        if name in old
    }
    breaking += [line for name in settings if name in marks for line in settings[name]]
    breaking += _changes(before, now, "", only=("seed", "core", "weights"))
    if breaking:
        best, last = (folder.checkpoints / f"{name}.ckpt" for name in ("best", "last"))
        raise UserError(
            f"--resume {folder.path}: {', '.join(breaking)}: the checkpoint does not fit these changes; undo"
            f" them, or start a new run from its weights: --weights {best if best.exists() else last}"
        )
    harmless = [line for name in settings if name not in marks for line in settings[name]]
    harmless += _changes(before["parameters"], now["parameters"], "")
    harmless += _changes(before["trainer_options"], now["trainer_options"], "trainer")
    harmless += _changes(before, now, "", only=("monitor", "mode", "samples", "batch_size", "on_nonfinite"))
    harmless += _changes(before["versions"], now["versions"], "")
    kept = folder.path / "recipe.py"
    file = now["file"]
    if file is not None and kept.exists() and kept.read_bytes() != Path(file).read_bytes():
        harmless.append(f"{file}: not the same text as its copy {kept}")
    return harmless


def announce(folder: RunFolder, start: Start, differing: Iterable[str]) -> None:
    """Print from where the run is resumed, and what changed since it was started.

    Args:
        folder: the run's folder.
        start: the checkpoint.
        differing: the changes, as :func:`check_unchanged` returns them.
    """
    for line in start.skipped:
        rank_zero_info(f"{line}; resuming from {start.path.name} instead")
    rank_zero_info(f"resuming {folder.path} from {start.path.name}: epoch {start.epoch + 1}, step {start.step}")
    for line in differing:
        rank_zero_info(f"  changed since the run was started: {line}")


def _plugins(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {plugin.get("name", plugin["class"]): plugin for plugin in record["plugins"]}


def _names(plugins: Iterable[str]) -> str:
    return ", ".join(plugins) or "none"


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], of: str, only: Iterable[str] | None = None) -> list[str]:
    """Return the entries that differ as ``name: old → new``, without objects whose text is only their address."""
    names = list(only) if only is not None else list({**old, **new})
    lines = []
    for name in names:
        a, b = old.get(name), new.get(name)
        if a != b and " at 0x" not in f"{a}{b}":
            lines.append(f"{of}.{name}: {a} → {b}" if of else f"{name}: {a} → {b}")
    return lines
