"""A run's folder ``<logs>/<recipe>/version_N``: event files, checkpoints, a copy of the recipe, ``run.json``."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from framework.checkpoint.atomic import atomic_file, link
from framework.checkpoint.lock import Lock
from framework.checkpoint.ranks import is_first
from framework.errors import UserError
from framework.settings import plain

KEY = "checkpoints"  # of the checkpoint callback's state in a checkpoint
ENDED = ("finished", "stopped")  # status of a run that came to its end
NEXT = "next"  # name of a checkpoint that has not got its final names yet

_PACKAGES = ("jtilde", "torch", "pytorch-lightning", "torchmetrics", "numpy")
_OF_RANKS = "FRAMEWORK_RUN_FOLDER"  # by it ranks that Lightning launches find the folder of rank zero
_BEFORE = "before_"  # prefix of the best checkpoint from before a phase


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = Lock(path)

    @classmethod
    def create(cls, logs: Path, name: str) -> RunFolder:
        """Make the next free ``version_N`` and lock it; two runs that start at the same time get two folders.

        Args:
            logs: folder of all runs.
            name: the recipe's name.

        Raises:
            UserError: if the folder cannot be written.
        """
        if (made := cls.of_ranks()) is not None:
            return made
        if not is_first():  # see `agree`
            return cls(logs / name / "of_rank_zero")
        parent = logs / name
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number = max((n for n, _ in versions_in(parent)), default=-1) + 1
            while True:
                path = parent / f"version_{number}"
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise UserError(
                f"logs={str(logs)!r}: cannot write there ({error.strerror}); choose another --logs"
            ) from error
        folder = cls(path)
        folder.hold()
        return folder

    def hold(self) -> None:
        """Lock the folder until :meth:`leave`, and pass its path to ranks that are launched later.

        Raises:
            UserError: if another process trains into it, or it cannot be written.
        """
        if not is_first():
            return
        try:
            taken = self.lock.take()
        except OSError as error:
            raise UserError(f"{self.path}: cannot write there ({error.strerror}); choose another run") from error
        if not taken:
            raise UserError(f"{self.path}: another process is training this run; stop it first, or start a new run")
        os.environ[_OF_RANKS] = str(self.path.absolute())

    def leave(self) -> None:
        """Release the lock of the folder."""
        self.lock.leave()
        os.environ.pop(_OF_RANKS, None)

    @classmethod
    def of_ranks(cls) -> RunFolder | None:
        """Return the folder that rank zero made if this process is another rank that Lightning launched, else None."""
        if not is_first() and _OF_RANKS in os.environ:
            return cls(Path(os.environ[_OF_RANKS]))
        return None

    def agree(self, trainer: pl.Trainer) -> None:
        """Take over the path of rank zero's folder, which ranks of another launcher learn only from it.

        A collective: every rank must call it, once the ranks are connected.
        """
        self.path = Path(trainer.strategy.broadcast(str(self.path)))

    @classmethod
    def all(cls, logs: Path, name: str) -> list[RunFolder]:
        """Return the folders of a recipe's runs, newest first."""
        return [cls(path) for _, path in reversed(versions_in(logs / name))]

    @classmethod
    def newest(cls, logs: Path, name: str) -> RunFolder:
        """Return the folder of a recipe's newest run that has a checkpoint, or else of the newest one.

        Raises:
            UserError: if there is none.
        """
        found = cls.all(logs, name)
        found = [folder for folder in found if any(folder.checkpoints.glob("*.ckpt"))] or found
        if not found:
            raise UserError(f"no run of {name!r} in {logs}; train one first (fit), or give --logs or --run")
        return found[0]

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def curves(self, phase: str | None = None) -> Path:
        """Return the folder of the event files; a later phase has its own, because its steps count from 0."""
        return self.path if phase is None else self.path / phase

    def checkpoint(self, which: str) -> Path:
        """Return the path of a checkpoint.

        Args:
            which: ``"best"``, ``"last"``, or the path of a file.

        Raises:
            UserError: if there is no such file; the message lists those of the run.
        """
        path = self.checkpoints / f"{which}.ckpt" if which in ("best", "last") else Path(which)
        if not path.exists():
            have = ", ".join(sorted(p.stem for p in self.checkpoints.glob("*.ckpt"))) or "none"
            raise UserError(f"ckpt={which!r}: no such checkpoint ({path}); this run has: {have}")
        return path

    def read(self) -> dict[str, Any]:
        """Return the content of ``run.json``.

        Raises:
            UserError: if it is missing or not JSON.
        """
        file = self.path / "run.json"
        try:
            content = json.loads(file.read_text())
        except FileNotFoundError as error:
            raise UserError(f"{self.path} is not a run's folder: it has no run.json") from error
        except ValueError as error:
            raise UserError(f"{file} is not JSON: {error}") from error
        return dict(content)

    @rank_zero_only
    def write(self, content: Mapping[str, Any]) -> None:
        """Replace ``run.json`` atomically; if it cannot be written, as on a full disk, warn and go on."""
        try:
            with atomic_file(self.path / "run.json") as draft:
                draft.write_text(json.dumps(plain(content), indent=2) + "\n")
        except OSError as error:
            warnings.warn(f"{self.path / 'run.json'} could not be written ({error.strerror})", stacklevel=2)

    @rank_zero_only
    def update(self, **content: Any) -> None:
        """Replace some entries of ``run.json``, if it is still there."""
        if self.path.is_dir():
            self.write({**self.read(), **content})

    @rank_zero_only
    def copy_recipe(self, file: Path | None) -> None:
        """Copy the recipe's file to ``recipe.py`` in the folder."""
        if file is not None:
            shutil.copyfile(file, self.path / "recipe.py")

    def hand_over(self, phase: str) -> None:
        """Make the checkpoint of a finished phase the run's ``best.ckpt``.

        The best one from before is kept as ``before_<phase>.ckpt``. The phase's own file stays as a second name of the
        new best, so that a run that is killed after this does not train the phase again.

        Args:
            phase: the phase's name.
        """
        best, own = self.checkpoints / "best.ckpt", self.checkpoints / f"{phase}.ckpt"
        if own.exists():
            if best.exists():
                best.replace(best.with_name(f"{_BEFORE}{phase}.ckpt"))
            link(own, best)
            own.with_name(f"{previous(phase)}.ckpt").unlink(missing_ok=True)

    def take_back_hand_over(self) -> None:
        """Restore the ``best.ckpt`` that a phase replaced, when the run is resumed from before that phase."""
        for before in self.checkpoints.glob(f"{_BEFORE}*.ckpt"):
            before.replace(before.with_name("best.ckpt"))


def previous(name: str) -> str:
    """Return the name of the checkpoint that the checkpoint ``name`` replaced.

    Example:
        >>> previous("last"), previous("retrain")
        ('previous', 'previous_retrain')
    """
    return "previous" if name == "last" else f"previous_{name}"


def versions_in(parent: Path) -> list[tuple[int, Path]]:
    """Return number and path of each run in a recipe's folder, in ascending order."""
    found = ((re.fullmatch(r"version_(\d+)", p.name), p) for p in parent.glob("version_*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def versions_of_packages() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a run's results."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
