"""Runs on disk are grouped by what was trained, and paired by seed and fold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from framework import UserError, fit
from framework.tune import compare

FAST = {"enable_progress_bar": False}


@pytest.fixture(scope="module")
def logs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs of three settings: two seeds of each, and a third seed of one."""
    folder = tmp_path_factory.mktemp("logs")
    for seed in (0, 1):
        fit(toy, seed=seed, logs=folder, trainer=FAST)
        fit(toy, seed=seed, logs=folder, trainer=FAST, without=["input_noise"])
        fit(toy, seed=seed, logs=folder, trainer=FAST, parameters={"width": 16})
    fit(toy, seed=2, logs=folder, trainer=FAST, parameters={"width": 16})
    return folder


def version(logs: Path, number: int) -> Path:
    return logs / "searched_recipe" / f"version_{number}"


def test_settings_are_named_by_what_differs(logs: Path) -> None:
    found = compare([logs])
    assert [row.name for row in found.rows] == ["width=8 without input_noise", "width=16 with input_noise"]
    assert [row.found.n for row in found.rows] == [2, 2]
    assert found.metric == "val/loss"
    assert "seed 2" in found.text()
    assert "compared with: width=8 with input_noise (2 runs" in found.text()
    record = json.loads((version(logs, 1) / "run.json").read_text())
    assert found.rows[0].figures[0] == record["metrics"]["val/loss"]


def test_an_argument_that_was_given_as_its_default_is_no_difference(logs: Path, toy: Path, tmp_path: Path) -> None:
    one = fit(toy, seed=0, logs=tmp_path, trainer=FAST, parameters={"width": 8}).folder
    assert one is not None
    with pytest.raises(UserError, match=r"compare: 2 runs of one setting; give runs of at least two settings"):
        compare([one, version(logs, 3)])


def test_settings_whose_names_look_alike_have_their_own_rows(logs: Path, tmp_path: Path) -> None:
    record = json.loads((version(logs, 0) / "run.json").read_text())
    for number, (rate, loss) in enumerate([(0.1, 1.0), (0.10000001, 2.0), (0.10000002, 3.0)]):
        folder = tmp_path / f"version_{number}"
        folder.mkdir()
        changed = {**record["arguments"], "rate": rate}
        metrics = {"val/loss": loss}
        (folder / "run.json").write_text(json.dumps({**record, "arguments": changed, "metrics": metrics}))
    assert [row.found.mean for row in compare([tmp_path]).rows] == [-1.0, -2.0]


def test_more_is_better_for_an_accuracy_and_folds_are_pairs(toy: Path, tmp_path: Path) -> None:
    for fold in (0, 1):
        for rate in (0.01, 0.1):
            changes = {"settings": {"optimizer.lr": rate}, "parameters": {"fold": fold}}
            fit(toy, seed=0, logs=tmp_path, trainer=FAST, **changes)
    found = compare([tmp_path], metric="val/accuracy")
    assert found.higher_is_better
    (row,) = found.rows
    assert (row.name, row.found.n) == ("optimizer.lr=0.1", 2)
    assert row.found.mean == pytest.approx(sum(a - b for a, b in zip(row.figures, row.others, strict=True)) / 2)


@pytest.mark.parametrize(
    ("which", "given", "words"),
    [
        ([0], {}, r"compare: one run, .*version_0; give runs of at least two settings"),
        (
            [0, 4],
            {},
            r"can be paired with one of the first, which are of seed 0 fold None: .* seed 1 fold None;",
        ),
        ([0, 1], {"metric": "val/f1"}, r"metric='val/f1': .*version_0 has none of that name \(it has: .*val/accuracy"),
        ([0, 1], {"metric": "val/loss", "mode": "low"}, r"mode='low': must be 'min' or 'max'"),
    ],
)
def test_bad_input(logs: Path, which: list[int], given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        compare([version(logs, number) for number in which], **given)


def test_recipes_without_a_common_metric(logs: Path, tmp_path: Path) -> None:
    other = tmp_path / "version_0"
    other.mkdir()
    record = json.loads((version(logs, 0) / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**record, "recipe": "other", "metrics": {"val/mse": 1.0}}))
    with pytest.raises(UserError, match=r"metric='val/loss': .*version_0 has none of that name \(it has: val/mse\)"):
        compare([version(logs, 0), other])
