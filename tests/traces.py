"""All that a run leaves, to be compared with what another one left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from framework.checkpoint.file import read_checkpoint

# what differs by the clock
_TIMES = ("seconds", "events")


def curves_of(folder: Path) -> dict[str, list[Any]]:
    """Return a run's scalars, histograms and images by tag, in the order of their steps, bit by bit."""
    found: dict[str, list[Any]] = {}
    for place in sorted({file.parent for file in folder.rglob("events.out.tfevents*")}):
        kinds = ("scalars", "histograms", "images", "tensors")
        events = EventAccumulator(str(place), size_guidance=dict.fromkeys(kinds, 0)).Reload()
        read = {"scalars": events.Scalars, "histograms": events.Histograms, "images": events.Images}
        for kind, of in read.items():
            for tag in events.Tags()[kind]:
                entries = [(event.step, _values_of(event)) for event in of(tag)]
                # files begun in the same second are read in any order
                found[f"{place.relative_to(folder)}/{kind}/{tag}"] = sorted(entries, key=lambda entry: entry[0])
    return found


def _values_of(event: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(event).items() if name not in ("wall_time", "step")}


def checkpoint_of(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds but for times."""
    content = read_checkpoint(path)
    content["callbacks"]["checkpoints"] = {
        name: value for name, value in content["callbacks"]["checkpoints"].items() if name not in _TIMES
    }
    return content


def results_of(folder: Path) -> dict[str, Any]:
    """Return a run's results but for times, from ``run.json``."""
    content = json.loads((folder / "run.json").read_text())
    names = ("status", "metrics", "last", "best_epoch", "epochs", "steps", "skipped")
    phases = [{name: value for name, value in phase.items() if name != "seconds"} for phase in content["phases"]]
    return {**{name: content[name] for name in names}, "phases": phases}


def same(a: Any, b: Any) -> bool:
    """Return whether two values of plain data and tensors are the same bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def assert_same(alone: Path, resumed: Path) -> None:
    """Check that two runs left the same: results, checkpoints, curves."""
    ours, theirs = results_of(resumed), results_of(alone)
    assert ours == theirs, [(name, ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]]
    names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (alone, resumed)]
    # where a run is cut off between two names of a file the one before is not there
    assert set(names[1]) - {"previous.ckpt"} == set(names[0]) - {"previous.ckpt"}, names
    for name in set(names[0]) - {"previous.ckpt"}:
        ours, theirs = (checkpoint_of(folder / "checkpoints" / name) for folder in (resumed, alone))
        assert list(ours) == list(theirs), name
        for entry in theirs:
            assert same(ours[entry], theirs[entry]), f"{name}: {entry}"
    ours, theirs = curves_of(resumed), curves_of(alone)
    assert set(ours) == set(theirs), set(ours) ^ set(theirs)
    for tag in theirs:
        assert ours[tag] == theirs[tag], tag
