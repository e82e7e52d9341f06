"""Changes to a recipe are written to a file and read from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework import UserError
from framework.recipe.changes import read_changes, write_changes


def test_what_is_written_is_read(tmp_path: Path) -> None:
    changes = {
        "parameters": {"width": 64, "kind": "tanh"},
        "settings": {"norm_penalty.alpha": 1e-7, "optimizer.lr": 0.1},
        "with_": ["sam", ("input_noise", {"std": 0.1})],
        "without": ["mixup"],
        "trainer": {"max_epochs": 3},
    }
    write_changes(tmp_path / "best.yaml", changes, "trial 3")
    assert read_changes(tmp_path / "best.yaml") == changes
    assert (tmp_path / "best.yaml").read_text().startswith("# trial 3\n")
    write_changes(tmp_path / "none.yaml", {}, "nothing")
    assert read_changes(tmp_path / "none.yaml") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("setting: {}", r"no such entry: setting; did you mean 'settings'\?"),
        ("- a", r"must be a mapping with some of parameters, settings, with, without, trainer"),
        ("without: mixup", r"without must be a list"),
        ("settings: [a]", r"settings must be a mapping"),
        ("a: [", r"cannot be read: "),
    ],
)
def test_files_that_are_wrong(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_changes(path)
    with pytest.raises(UserError, match=r"settings .*y.yaml: cannot be read: "):
        read_changes(tmp_path / "y.yaml")
