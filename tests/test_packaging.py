"""What is installed is what the project says, and the documents that go with it are there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import framework

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    listed = [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]
    return [one for one in map(Requirement, listed) if one.name != "jtilde"]  # an extra may name others


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_each_pinned_release_lies_within_its_range(requirement: Requirement) -> None:
    pins = {normal(name): version for name, version in PINS.items()}
    assert Version(pins[normal(requirement.name)]) in requirement.specifier


def test_pins_name_releases_that_any_index_has() -> None:
    for name, version in PINS.items():
        assert Version(version).local is None, name
        assert not Version(version).is_prerelease, name


def test_the_version_is_said_once() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert metadata.version("jtilde") == framework.__version__


def test_what_is_imported_is_declared() -> None:
    """Every top-level import of the packages is the standard library's, ours, or a declared dependency's."""
    provided = metadata.packages_distributions()
    declared = {normal(one.name) for one in requirements()}
    ours = {*PROJECT["tool"]["setuptools"]["packages"], *sys.stdlib_module_names}
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        for file in (ROOT / package).rglob("*.py"):
            for name in re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(), re.MULTILINE):
                if name not in ours and not (file.parent / f"{name}.py").exists():
                    owners = {normal(owner) for owner in provided.get(name, [])}
                    assert owners & declared, f"{file.relative_to(ROOT)} imports {name}"


def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    flags = ["--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    tree = tmp_path / "tree"  # setuptools leaves its build folder where it builds
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", tmp_path, tree],
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    (wheel,) = tmp_path.glob("jtilde-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    info = f"jtilde-{framework.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"framework", "plugins", "recipes", info}
    assert {"framework/py.typed", "plugins/py.typed", "recipes/digits.py", f"{info}/licenses/LICENSE"} <= {*names}


def test_runs_are_ignored_but_for_the_note() -> None:
    asked = ["lightning_logs/digits/version_0/run.json", "lightning_logs/README.md", ".venv/bin/python"]
    done = subprocess.run(["git", "check-ignore", *asked], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [asked[0], asked[2]]
