"""A run's folder, ``<logs>/<recipe>/version_N``: event files, checkpoints, a copy of the recipe, ``run.json``."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from framework.checkpoint.lock import Lock
from framework.errors import UserError
from framework.settings import plain

_PACKAGES = ("jtilde", "torch", "pytorch-lightning", "torchmetrics", "numpy")
_OF_RANKS = "FRAMEWORK_RUN_FOLDER"  # tells ranks that Lightning launches which folder rank zero made


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
        """Make the next free ``version_N``; two runs at the same moment get two folders.

        Raises:
            UserError: where the folder cannot be written.
        """
        if (made := cls.of_ranks()) is not None:
            return made
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
        """Keep others from training into the folder until :meth:`leave`, and tell the ranks of it.

        Raises:
            UserError: where another process trains into it, or it cannot be written.
        """
        if self.of_ranks() is not None:
            return
        try:
            taken = self.lock.take()
        except OSError as error:
            raise UserError(f"{self.path}: cannot write there ({error.strerror}); choose another run") from error
        if not taken:
            raise UserError(f"{self.path}: another process is training this run; stop it first, or start a new run")
        os.environ[_OF_RANKS] = str(self.path.absolute())

    def leave(self) -> None:
        """Let others train into the folder."""
        self.lock.leave()

    @classmethod
    def of_ranks(cls) -> RunFolder | None:
        """Return the folder that rank zero made, in a process that Lightning launched as another rank."""
        # rank zero has LOCAL_RANK too, once it has launched others
        if os.environ.get("LOCAL_RANK", "0") != "0" and _OF_RANKS in os.environ:
            return cls(Path(os.environ[_OF_RANKS]))
        return None

    @classmethod
    def all(cls, logs: Path, name: str) -> list[RunFolder]:
        """Return the runs of a recipe, the newest first."""
        return [cls(path) for _, path in reversed(versions_in(logs / name))]

    @classmethod
    def newest(cls, logs: Path, name: str) -> RunFolder:
        """Return the newest run of a recipe.

        Raises:
            UserError: where there is none.
        """
        found = cls.all(logs, name)
        if not found:
            raise UserError(f"no run of {name!r} in {logs}; train one first (fit), or name its --logs or --run")
        return found[0]

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def curves(self, phase: str | None = None) -> Path:
        """Return the folder of the event files: a phase counts its steps from 0, so that its curves stand apart."""
        return self.path if phase is None else self.path / phase

    def checkpoint(self, which: str) -> Path:
        """Return the path of the checkpoint ``"best"``, ``"last"``, or of a file by its path.

        Raises:
            UserError: where there is no such file; the message lists what there is.
        """
        path = self.checkpoints / f"{which}.ckpt" if which in ("best", "last") else Path(which)
        if not path.exists():
            have = ", ".join(sorted(p.stem for p in self.checkpoints.glob("*.ckpt"))) or "none"
            raise UserError(f"ckpt={which!r}: no such checkpoint ({path}); in this run there are: {have}")
        return path

    def read(self) -> dict[str, Any]:
        """Return what ``run.json`` holds.

        Raises:
            UserError: where it is missing or no JSON.
        """
        file = self.path / "run.json"
        try:
            content = json.loads(file.read_text())
        except FileNotFoundError as error:
            raise UserError(f"{self.path} is no run folder: it has no run.json") from error
        except ValueError as error:
            raise UserError(f"{file} is no JSON: {error}") from error
        return dict(content)

    @rank_zero_only
    def write(self, content: Mapping[str, Any]) -> None:
        """Replace ``run.json`` in one go, so that whoever reads it sees the old or the new one."""
        file = self.path / "run.json"
        draft = file.with_suffix(".tmp")
        draft.write_text(json.dumps(plain(content), indent=2) + "\n")
        draft.replace(file)

    @rank_zero_only
    def update(self, **content: Any) -> None:
        """Replace entries of ``run.json``."""
        self.write({**self.read(), **content})

    @rank_zero_only
    def copy_recipe(self, file: Path | None) -> None:
        """Keep a copy of the recipe's file."""
        if file is not None:
            shutil.copyfile(file, self.path / "recipe.py")


def versions_in(parent: Path) -> list[tuple[int, Path]]:
    """Return the runs in a recipe's folder by number."""
    found = ((re.fullmatch(r"version_(\d+)", p.name), p) for p in parent.glob("version_*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def versions_of_packages() -> dict[str, str]:
    """Return the versions of Python and the packages that make a run's numbers."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
