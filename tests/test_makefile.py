"""When `make` recreates the environment and when it installs, with interpreters that only print a version."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PYTHON = """#!/bin/sh
case $1 in
-c) echo {version} ;;
-m) rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; touch .venv/pyvenv.cfg; echo made {version} >> log ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with the Makefile, what it depends on, and interpreters of two versions."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(Path(__file__).parents[1] / name, tmp_path)
    for name, version in (("python3", "3.11"), ("python3.11", "3.11"), ("python3.13", "3.13")):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(PYTHON.format(version=version))
        path.chmod(0o755)
    return tmp_path


def make(project: Path, *given: str) -> list[str]:
    """Return what is done for `make fit`, which is the same for the other targets, up to the fit."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "M"))}
    environment["PATH"] = f"{project / 'bin'}:{environment['PATH']}"
    (project / "log").write_text("")
    command = ["make", "--silent", ".venv/installed", "INSTALL=echo installed >> log; true", *given]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stderr
    return [*(project / "log").read_text().splitlines(), *["refused"] * (done.returncode == 2)]


def test_the_environment_is_made_once_and_again_for_another_version(project: Path) -> None:
    assert make(project) == ["made 3.11", "installed"]
    assert make(project) == []
    assert make(project, "PYTHON=python3.11") == []
    assert make(project, "PYTHON=python3.13") == ["made 3.13", "installed"]
    assert make(project, "PYTHON=python3.13") == []
    assert make(project) == []  # no interpreter is named: it stays


def test_an_interpreter_that_is_not_there_costs_nothing(project: Path) -> None:
    make(project)
    assert make(project, "PYTHON=python3.99") == ["refused"]
    assert make(project) == []


def test_an_environment_whose_interpreter_is_gone_is_recreated(project: Path) -> None:
    make(project)
    (project / ".venv" / "bin" / "python").unlink()
    assert make(project) == ["made 3.11", "installed"]


def test_other_releases_are_installed_into_the_environment_that_is_there(project: Path) -> None:
    make(project)
    later = (project / ".venv" / "installed").stat().st_mtime + 10
    os.utime(project / "constraints.txt", (later, later))
    assert make(project) == ["installed"]
