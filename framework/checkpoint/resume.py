"""Going on with a run that ended before its end: which one, from which file, and what differs by now."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from framework.checkpoint.events import take_back
from framework.checkpoint.file import BadCheckpoint, read_checkpoint
from framework.checkpoint.folder import RunFolder
from framework.checkpoint.saving import KEY, NEXT, previous
from framework.errors import UserError, one_line
from framework.plugin.phase import take_back_hand_over
from framework.settings import plain

if TYPE_CHECKING:
    from framework.engine.core import Core

# hook points whose answers leave their mark in the optimizer's or the network's state
_MARKS = ("prepare_model", "group_parameters", "make_optimizer", "make_scheduler")
_ENDED = ("finished", "stopped")
_CORE_BEFORE = "framework.module.Core"  # what version 0.1.0 called framework.Core in run.json


@dataclasses.dataclass(frozen=True)
class Start:
    """Where training goes on.

    Args:
        path: the checkpoint.
        step: optimizer steps done by then.
        epoch: the epoch at hand, from 0.
        skipped: a line on each newer file that is no good.
        events: lengths of the run's event files by then.
        seconds: seconds of training by then.
    """

    path: Path
    step: int
    epoch: int
    skipped: list[str]
    events: dict[str, int]
    seconds: float


def run_to_resume(named: str | Path | None, logs: Path, name: str) -> RunFolder:
    """Return the folder of the run that is named, or of the recipe's last run that has not ended by itself.

    Args:
        named: the run's folder, None for the last unfinished one.
        logs: folder of all runs.
        name: the recipe's name.

    Raises:
        UserError: where there is no such run.
    """
    if (made := RunFolder.of_ranks()) is not None:
        return made
    if named is not None:
        folder = RunFolder(Path(named))
        made_by = folder.read()["recipe"]
        if made_by != name:
            raise UserError(f"--resume {named}: a run of the recipe {made_by!r}, not of {name!r}")
        return folder
    for folder in RunFolder.all(logs, name):
        try:
            status = folder.read()["status"]
        except UserError:  # made in the moment before the process was killed
            continue
        if status not in _ENDED:
            return folder
    raise UserError(
        f"--resume: no run of {name!r} in {logs} is unfinished; leave --resume out, or name a run: --resume RUN"
    )


def start_of(folder: RunFolder) -> Start | None:
    """Return where a run goes on: its newest checkpoint that can be read, None where none was ever written.

    Raises:
        UserError: where there are files and none is usable.
    """
    start, skipped = _newest(folder, ("last", previous("last"), "best"), after=0)
    if start is None and skipped:
        raise UserError(f"{folder.path}: no usable checkpoint to go on from: {'; '.join(skipped)}")
    return start


def start_of_phase(folder: RunFolder, name: str, after: int) -> Start | None:
    """Return where a later phase goes on, None where it starts anew; what it logged since is cut off.

    Args:
        folder: the run's folder.
        name: the phase's name.
        after: optimizer steps of the run before it; a phase that came after others was another one.
    """
    start, skipped = _newest(folder, (name, previous(name)), after)
    if RunFolder.of_ranks() is None:
        take_back(folder.curves(name), {} if start is None else start.events)
    for line in skipped:
        rank_zero_info(f"{line}; going on from {'the start' if start is None else start.path.name} instead")
    return start


def _newest(folder: RunFolder, names: Iterable[str], after: int) -> tuple[Start | None, list[str]]:
    """Return the first of these checkpoints that is usable, and a line on each before it that is not."""
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
            skipped.append(f"{path}: written by other means than a run's own")
        elif kept["after"] == after:
            # Lightning's own count leaves out an epoch that has just ended
            epoch = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
            return Start(path, content["global_step"], epoch, skipped, kept["events"], kept["seconds"]), skipped
    return None, skipped


def clear(folder: RunFolder, start: Start) -> None:
    """Remove what a run left behind that was cut off: a file without its names, and what it logged after the start."""
    for path in [folder.checkpoints / f"{NEXT}.ckpt", *folder.checkpoints.glob(".*.tmp")]:
        path.unlink(missing_ok=True)
    take_back_hand_over(folder)
    take_back(folder.path, start.events)


def check_unchanged(folder: RunFolder, before: Mapping[str, Any], now: Mapping[str, Any], core: Core) -> list[str]:
    """Return what differs from the run as it was, where it may go on nevertheless.

    Args:
        folder: the run's folder.
        before: what ``run.json`` holds.
        now: what it is going to hold.
        core: of the run as it is going to be.

    Raises:
        UserError: where what differs gives the checkpoint's content another meaning.
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
            f"--resume {folder.path}: {', '.join(breaking)}: what the checkpoint holds would mean something else; undo"
            f" that, or start a new run from its weights: --weights {best if best.exists() else last}"
        )
    harmless = [line for name in settings if name not in marks for line in settings[name]]
    harmless += _changes(before["parameters"], now["parameters"], "")
    harmless += _changes(before["trainer_options"], now["trainer_options"], "trainer")
    harmless += _changes(before, now, "", only=("monitor", "mode", "samples", "batch_size", "on_nonfinite"))
    harmless += _changes(before["versions"], now["versions"], "")
    kept = folder.path / "recipe.py"
    file = now["file"]
    if file is not None and kept.exists() and kept.read_bytes() != Path(file).read_bytes():
        harmless.append(f"{file}: not the text of {kept} any more")
    return harmless


def tell(folder: RunFolder, start: Start, differing: Iterable[str]) -> None:
    """Say where the run goes on, and what differs."""
    for line in start.skipped:
        rank_zero_info(f"{line}; going on from {start.path.name} instead")
    rank_zero_info(f"going on with {folder.path} from {start.path.name}: epoch {start.epoch + 1}, step {start.step}")
    for line in differing:
        rank_zero_info(f"  differs from the run so far: {line}")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Put the network's weights of a checkpoint in.

    Args:
        model: the network, as plugins prepared it.
        path: the checkpoint.

    Raises:
        UserError: where the file is unusable or of another network.
    """
    kept = read_checkpoint(path)["state_dict"]
    state = {name.removeprefix("model."): value for name, value in kept.items() if name.startswith("model.")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"weights={str(path)!r}: of another network: {one_line(error)}") from error


def _plugins(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {plugin.get("name", plugin["class"]): plugin for plugin in record["plugins"]}


def _names(plugins: Iterable[str]) -> str:
    return ", ".join(plugins) or "none"


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], of: str, only: Iterable[str] | None = None) -> list[str]:
    """Return the entries that differ, as ``name: old → new``, but for objects that tell nothing but their address."""
    names = list(only) if only is not None else list({**old, **new})
    lines = []
    for name in names:
        a, b = old.get(name), new.get(name)
        if a != b and " at 0x" not in f"{a}{b}":
            lines.append(f"{of}.{name}: {a} → {b}" if of else f"{name}: {a} → {b}")
    return lines
