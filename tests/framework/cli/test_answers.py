"""The commands tune, ablate and compare, and the files they write."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.cli import main as cli
from framework.recipe.changes import read_changes

Run = Callable[..., tuple[int, str, str]]


SEARCH = ("--search", "norm_penalty.alpha=1e-4..1e-1", "--trials", "3")


def test_a_search_prints_a_line_a_trial_and_fit_takes_its_file(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("tune", *SEARCH, "--cocktail")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines() if line.startswith("trial ")][:3] == ["0", "1", "2"]
    file = next(tmp_path.glob("logs/*/studies/study/best.yaml"))
    assert f"--settings {file}" in out
    code, out, _ = run("fit", "--settings", str(file), "--with", "norm_penalty:name=more,alpha=0.5")
    assert code == 0
    kept = json.loads(next(tmp_path.glob("logs/*/version_0/run.json")).read_text())
    assert kept["settings"] == read_changes(file).get("settings", {})
    assert [fields["name"] for _, fields in kept["with"]] == ["more"]


def test_text_of_flags_stands_in_the_file(run: Run, tmp_path: Path) -> None:
    flags = ("--with", "hidden_noise:layers=Tanh,kind=masking,rate=0.1", "--set", "input_noise.std=0.2")
    code, _, err = run("tune", *SEARCH, *flags)
    assert code == 0, err
    file = next(tmp_path.glob("logs/*/studies/study/best.yaml"))
    code, _, err = run("fit", "--settings", str(file))
    assert code == 0, err
    kept = json.loads(next(tmp_path.glob("logs/*/version_0/run.json")).read_text())
    found = {one["name"]: one["settings"] for one in kept["plugins"]}
    assert (found["hidden_noise"]["rate"], found["input_noise"]["std"]) == (0.1, 0.2)


def test_a_study_of_failures_says_so(run: Run) -> None:
    code, _, err = run("tune", "--trials", "2", "--search", "widths=[-1],[-2]", "--set", "input_noise.std=0")
    assert code == 2
    assert "tune: no trial completed" in err


def test_a_dry_run(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("tune", *SEARCH, "--dry")
    assert code == 0
    assert "a trial: 1 x 1 epochs" in out
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--search", "alpha"), "--search alpha: write it as NAME=LOW..HIGH"),
        (("--prune", "often"), "prune='often': must be one of 'none', 'median'"),
        (("--serach", "alpha=1..2"), "no such flag: --serach; did you mean '--search'?"),
        (("--search", "alpha=1..2", "--search", "alpha=1..3"), "--search alpha: given twice"),
        (("--search", "alhpa=1..2"), "search alhpa: no such setting or parameter; did you mean 'alpha'?"),
        (("--settings", "nowhere.yaml"), "settings nowhere.yaml: cannot be read"),
    ],
)
def test_bad_flags(run: Run, flags: tuple[str, ...], words: str) -> None:
    code, _, err = run("tune", *flags)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_without_optuna_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = run("tune", *SEARCH)
    assert code == 2
    assert "pip install 'jtilde[tune]'" in err


def test_an_ablation_and_a_comparison(run: Run, tmp_path: Path) -> None:
    code, out, err = run("ablate", "--seeds", "2", "--with", "sam", "--keep", "norm_penalty")
    assert code == 0, err
    assert "input_noise beside others" in out
    assert "in every run: norm_penalty" in out
    folder = next(tmp_path.glob("logs/*/ablations/ablation"))
    assert f"report: {folder / 'report.html'}" in out
    code = cli.main(["compare", str(folder), "--out", str(tmp_path / "report")])
    assert code == 0
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.md", "report.html", "report.csv"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "the runs come first: python -m framework compare RUN RUN"),
        (["nowhere"], "no such folder: nowhere"),
        (["x", "--metrik", "val/loss"], "no such flag: --metrik; did you mean '--metric'?"),
    ],
)
def test_bad_flags_of_compare(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *flags]) == 2
    assert words in capsys.readouterr().err
