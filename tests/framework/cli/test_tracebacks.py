"""Tracebacks on the command line show the recipe's own code alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("old", "new", "last"),
    [
        ("import torch\n", "import torch\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import torch\n", "import torhc\n", "ModuleNotFoundError: No module named 'torhc'"),
        ("import torch\n", "import torch\ndef broken(:\n", "SyntaxError: invalid syntax"),
        ('    """Tell', '    raise KeyError(alpha)\n    """Tell', "KeyError: 0.001"),
        ("nn.Sequential(*layers", "nn.Sequential(torch.zeros(2) @ torch.zeros(3), *layers", "RuntimeError: .*size.*"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "explain"])
def test_a_recipe_that_raises_shows_its_own_traceback(
    run: Callable[..., tuple[int, str, str]], recipe_file: Path, command: str, old: str, new: str, last: str
) -> None:
    recipe_file.write_text(recipe_file.read_text().replace(old, new, 1))
    code, out, err = run(command)
    assert (code, out) == (1, "")
    assert f'File "{recipe_file}", line ' in err
    assert str(ROOT / "framework") not in err
    assert "importlib" not in err
    assert re.search(last, err.splitlines()[-1])


def test_a_network_that_raises_shows_its_own_traceback(
    run: Callable[..., tuple[int, str, str]], recipe_file: Path
) -> None:
    broken = "class Broken(nn.Module):\n    def forward(self, x):\n        raise OSError('lost')\n\ndef recipe("
    changed = (
        recipe_file.read_text()
        .replace("def recipe(", broken)
        .replace("nn.Sequential(*layers", "nn.Sequential(Broken(), *layers")
    )
    recipe_file.write_text(changed)
    code, _, err = run("fit")
    assert code == 1
    assert err.splitlines()[-1] == "OSError: lost"
    assert "in forward" in err
    assert str(ROOT / "framework") not in err
