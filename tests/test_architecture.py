"""What ARCHITECTURE.md says of the files is so: tests mirror sources, public names exist, files stay short."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()

# sources without a test file of their own
UNTESTED = {
    "framework/__main__.py": "hands over to cli/main.py; other tests run it as a program",
    "framework/version.py": "one string",
    "framework/plugin/finding.py": "data types alone; what findings say is tested in test_lint.py",
}
# test files without a source of their own
SOURCELESS = {
    "tests/framework/checkpoint/test_hostile_files.py": "checkpoint/file.py under attack, through every command; "
    "test_file.py would be 560 lines long with it",
}
LIMIT = 300
LONGER = {"framework/plugin/plugin.py": 330, "framework/engine/core.py": 330}


def write(root: Path, files: dict[str, str]) -> Path:
    """Write a small project, in which a check is to find what is wrong."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def python_files(root: Path, *folders: str) -> Iterator[tuple[str, Path]]:
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            yield path.relative_to(root).as_posix(), path


# ---- tests mirror sources --------------------------------------------------------------------------------------------


def mirror(root: Path) -> tuple[set[str], set[str]]:
    """Return the sources that have no test file, and the test files that have no source."""
    sources = {name for name, path in python_files(root, "framework", "plugins", "recipes") if path.stem != "__init__"}
    folders = ("tests/framework", "tests/plugins", "tests/recipes")
    tests = {name for name, path in python_files(root, *folders) if path.stem.startswith("test_")}
    wanted = {re.sub(r"([^/]+)$", r"test_\1", f"tests/{name}"): name for name in sources}
    return {wanted[test] for test in wanted.keys() - tests}, tests - wanted.keys()


def test_each_file_has_its_test_file_and_the_other_way_round() -> None:
    untested, sourceless = mirror(ROOT)
    assert untested == UNTESTED.keys()
    assert sourceless == SOURCELESS.keys()


def test_a_file_without_its_other_is_found(tmp_path: Path) -> None:
    names = ["framework/ops/a.py", "framework/ops/__init__.py", "framework/b.py", "plugins/c.py", "recipes/d.py"]
    names += ["tests/framework/ops/test_a.py", "tests/framework/test_c.py", "tests/plugins/test_c.py"]
    names += ["tests/framework/ops/conftest.py", "tests/recipes/ops/test_d.py"]
    root = write(tmp_path, dict.fromkeys(names, ""))
    untested = {"framework/b.py", "recipes/d.py"}
    assert mirror(root) == (untested, {"tests/framework/test_c.py", "tests/recipes/ops/test_d.py"})


# ---- public names ----------------------------------------------------------------------------------------------------


def table(text: str, heading: str) -> dict[str, list[str]]:
    """Return the names in backquotes of each row of a section's table, by the first of them."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    return {first.strip(" `"): re.findall(r"`([^`]+)`", "|".join(rest)) for first, *rest in rows}


def wrong_names(text: str) -> dict[str, set[str]]:
    """Return what the table of public modules has too many or too few of, by module."""
    wrong = {}
    for name, listed in table(text, "Public modules").items():
        if name == "framework.ops.*":
            differ = {one for one in listed if not (ROOT / "framework" / "ops" / f"{one}.py").is_file()}
        else:
            module = importlib.import_module(name)
            differ = {one for one in listed if not hasattr(module, one)} | {n for n in listed if listed.count(n) > 1}
            if name in ("framework", "framework.plugin", "framework.data"):
                differ |= set(listed) ^ (set(module.__all__) - {"__version__"})
        if differ:
            wrong[name] = differ
    return wrong


def test_public_names_are_those_that_the_table_lists() -> None:
    assert table(TEXT, "Public modules").keys() == {
        "framework",
        "framework.plugin",
        "framework.data",
        "framework.data.fetch",
        "framework.data.split",
        "framework.ops.*",
        "framework.settings",
        "framework.errors",
        "framework.testing",
        "framework.tune",
    }
    assert all(names for module, names in table(TEXT, "Public modules").items() if module != "framework.data.fetch")
    assert wrong_names(TEXT) == {}


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("`Core`, ", "", {"framework": {"Core"}}),
        ("`Core`, ", "`Core`, `Core`, ", {"framework": {"Core"}}),
        ("`Plan`, ", "`Plan`, `Answers`, ", {"framework.plugin": {"Answers"}}),
        ("`as_dataset`, ", "", {"framework.data": {"as_dataset"}}),
        ("`PositiveInt`", "`PositveInt`", {"framework.settings": {"PositveInt"}}),
        ("`did_you_mean`", "`did_you_maen`", {"framework.errors": {"did_you_maen"}}),
        ("`cases_of`", "`case_of`", {"framework.testing": {"case_of"}}),
        ("`images`, ", "`pictures`, ", {"framework.ops.*": {"pictures"}}),
    ],
)
def test_a_wrong_name_is_found(right: str, wrong: str, told: dict[str, set[str]]) -> None:
    section = TEXT[TEXT.index("## Public modules") :]
    assert right in section
    assert wrong_names("\n" + section.replace(right, wrong, 1)) == told


# ---- paths -----------------------------------------------------------------------------------------------------------


def lost_paths(text: str, root: Path) -> set[str]:
    """Return the paths in backquotes that are neither in the root nor in ``framework/``; ``<name>`` is any name."""
    named = set(re.findall(r"`([\w<>./]+(?:\.py|/))`", text))
    return {
        path
        for path in named
        if not any(list(folder.glob(re.sub(r"<\w+>", "*", path))) for folder in (root, root / "framework"))
    }


def test_every_path_that_is_named_exists() -> None:
    assert len(re.findall(r"`[\w<>./]+\.py`", TEXT)) > 20
    assert lost_paths(TEXT, ROOT) == set()


def test_a_path_that_is_lost_is_found(tmp_path: Path) -> None:
    root = write(tmp_path, {"framework/ops/a.py": "", "plugins/b.py": ""})
    text = "`ops/a.py` `ops/` `plugins/<name>.py` `a.py` `framework/ops/` `b/` `recipes/<name>.py` `ops.a`"
    assert lost_paths(text, root) == {"a.py", "b/", "recipes/<name>.py"}


def test_the_table_of_wings_lists_the_folders() -> None:
    folders = {f"{path.parent.name}/" for path in (ROOT / "framework").glob("*/__init__.py")}
    assert table(TEXT, "The wings of `framework/`").keys() == folders


# ---- length ----------------------------------------------------------------------------------------------------------


def too_long(root: Path) -> dict[str, int]:
    lengths = {name: len(path.read_text().splitlines()) for name, path in python_files(root, "framework", "plugins")}
    return {name: length for name, length in lengths.items() if length > LONGER.get(name, LIMIT)}


def test_files_stay_short() -> None:
    assert too_long(ROOT) == {}


def test_a_long_file_is_found(tmp_path: Path) -> None:
    lengths = {"framework/a.py": 300, "framework/ops/b.py": 301, "plugins/c.py": 301, "framework/engine/core.py": 330}
    lengths["framework/plugin/plugin.py"] = 331
    root = write(tmp_path, {name: "x = 1\n" * length for name, length in lengths.items()})
    assert too_long(root) == {"framework/ops/b.py": 301, "plugins/c.py": 301, "framework/plugin/plugin.py": 331}


# ---- imports ---------------------------------------------------------------------------------------------------------


def imported(name: str, text: str) -> set[str]:
    """Return every module that a file imports, anywhere in it; an imported name may be a module, and counts as one."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules |= {alias.name} | ({alias.name.partition(".")[0]} if alias.asname is None else set())
        elif isinstance(node, ast.ImportFrom):
            above = name.split("/")[: -node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            modules |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return modules


def importers(root: Path, folder: str, module: str) -> set[str]:
    """Return the files of a folder that import a module."""
    return {name for name, path in python_files(root, folder) if module in imported(name, path.read_text())}


def test_no_file_of_the_framework_imports_its_root() -> None:
    assert importers(ROOT, "framework", "framework") == set()


def test_only_loops_and_a_callback_are_handed_the_core() -> None:
    handed = {"framework/engine/loop.py", "framework/engine/validation.py", "framework/engine/attribution.py"}
    assert importers(ROOT, "framework/engine", "framework.engine.core") == handed


@pytest.mark.parametrize(
    ("line", "root", "core"),
    [
        ("from framework import Core", True, False),
        ("def f():\n    import framework", True, False),
        ("import framework.engine.core", True, True),
        ("import framework.engine.core as core", False, True),
        ("if TYPE_CHECKING:\n    from framework.engine.core import Core", False, True),
        ("from framework.engine import core", False, True),
        ("from . import core", False, True),
        ("from .core import Core", False, True),
        ("from .. import Core", True, False),
        ("from ..engine.core import Core", False, True),
        ("from framework.engine.loop import EpochLoop", False, False),
        ("from framework.engine import Core", False, False),
        ("import torch", False, False),
        ('"""\n>>> from framework import Core\n"""', False, False),
    ],
)
def test_an_import_is_found_wherever_it_stands(line: str, root: bool, core: bool, tmp_path: Path) -> None:
    project = write(tmp_path, {"framework/engine/part.py": line})
    found = {"framework/engine/part.py"}
    assert importers(project, "framework", "framework") == (found if root else set())
    assert importers(project, "framework/engine", "framework.engine.core") == (found if core else set())
