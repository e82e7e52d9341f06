from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.cli import main as cli
from framework.errors import UserError
from framework.plugin import Plugin
from framework.plugin.registry import find_plugin, registered
from framework.recipe.edits import apply_edits
from framework.recipe.recipe import Recipe

ROOT = Path(__file__).parents[3]

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.2.3"

[project.entry-points."framework.plugins"]
{entries}

[tool.setuptools]
py-modules = ["{module}"]
"""

GRADIENT_JITTER = '''
from framework import Plugin
from framework.settings import NonNegative

class GradientJitter(Plugin):
    """Add noise to gradients."""

    std: NonNegative = 0.01

    def transform_gradients(self, step):
        """Add it."""

NOT_A_PLUGIN = 3
'''


class Shift(Plugin):
    pass


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that builds a distribution with pip and installs it into a folder, which it returns."""

    def build_and_install(name: str, module: str, source: str, **entries: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        lines = "\n".join(f'{key} = "{target}"' for key, target in entries.items())
        (folder / "pyproject.toml").write_text(PYPROJECT.format(name=name, module=module, entries=lines))
        (folder / f"{module}.py").write_text(source)
        flags = ["--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "install", *flags, "--target", folder / "site", folder]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return folder / "site"

    return build_and_install


@pytest.fixture(scope="session")
def noise_site(build: Callable[..., Path]) -> Path:
    return build(
        "jtilde-gradient-jitter",
        "gradient_jitter_plugin",
        GRADIENT_JITTER,
        gradient_jitter="gradient_jitter_plugin:GradientJitter",
        lost="gradient_jitter_plugin:Lost",
        three="gradient_jitter_plugin:NOT_A_PLUGIN",
        nowhere="no_such_module:Thing",
    )


@pytest.fixture
def installed(noise_site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(noise_site))
    return noise_site


def test_the_bundled_plugins_are_registered_the_same_way() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["framework.plugins"]
    ours = {entry.name: entry for entry in registered() if entry.distribution.startswith("jtilde ")}
    assert {name: entry.target for name, entry in ours.items()} == declared
    files = {file.stem for file in (ROOT / "plugins").glob("*.py")} - {"__init__"}
    assert {*ours} == files
    for name, entry in ours.items():
        kind = entry.load()
        assert issubclass(kind, Plugin)
        assert entry.target == f"plugins.{name}:{kind.__name__}"


def test_a_distribution_of_its_own_is_found(installed: Path) -> None:
    entry = next(entry for entry in registered() if entry.name == "gradient_jitter")
    assert entry.distribution == "jtilde-gradient-jitter 1.2.3"
    kind = find_plugin("gradient_jitter")
    assert kind(std=0.5).settings() == {"name": "gradient_jitter", "std": 0.5}


def test_without_it_the_name_is_unknown() -> None:
    with pytest.raises(UserError, match="no plugin is called 'gradient_jitter'"):
        find_plugin("gradient_jitter")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lost", "AttributeError: .*Lost"),
        ("nowhere", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("three", "is not a subclass of framework.Plugin"),
    ],
)
def test_a_broken_entry_point_names_its_distribution(installed: Path, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"plugin '{name}' of jtilde-gradient-jitter 1\.2\.3.*{reason}"):
        find_plugin(name)


def test_one_name_of_two_distributions_is_no_guess(installed: Path, build: Callable[..., Path], monkeypatch) -> None:
    rival = build("rival", "rival_plugin", GRADIENT_JITTER, gradient_jitter="rival_plugin:GradientJitter")
    monkeypatch.syspath_prepend(str(rival))
    message = r"'gradient_jitter' is registered by jtilde-gradient-jitter 1\.2\.3 and rival 1\.2\.3; uninstall one"
    with pytest.raises(UserError, match=message):
        find_plugin("gradient_jitter")


def test_the_list_shows_good_ones_and_reports_broken_ones(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins"]) == 1
    shown = capsys.readouterr()
    assert (
        "gradient_jitter  (jtilde-gradient-jitter 1.2.3)\n  Add noise to gradients.\n    std  0.01  float >= 0\n"
        in shown.out
    )
    assert "norm_penalty  (jtilde " in shown.out
    broken = [line for line in shown.err.splitlines() if line.startswith("error: plugin")]
    assert [line.split("'")[1] for line in broken] == ["lost", "nowhere", "three"]


def test_installation_turns_nothing_on_and_a_flag_does(installed: Path, recipe: Callable[..., Recipe]) -> None:
    bare = apply_edits(recipe([Shift()]))
    assert [plugin.name for plugin in bare.plugins] == ["shift"]
    added = apply_edits(recipe([Shift()]), with_=[("gradient_jitter", {"std": 0.5})])
    assert [plugin.describe() for plugin in added.plugins] == ["Shift()", "GradientJitter(std=0.5)"]


def test_the_command_line_finds_an_installed_distribution(noise_site: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(noise_site), str(ROOT)])}
    command = [sys.executable, "-m", "framework", "plugins"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "gradient_jitter  (jtilde-gradient-jitter 1.2.3)" in done.stdout
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
