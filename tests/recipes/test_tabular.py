"""Tables: what is learned from which part, what becomes of missing, rare and unknown values, and the loss."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score
from sklearn.utils.class_weight import compute_class_weight

from framework import UserError, fit
from recipes.tabular import (
    BalancedAccuracy,
    BalancedCrossEntropy,
    balanced_accuracy,
    divided,
    preprocessing,
    read_table,
    recipe,
)

QUIET = {"enable_progress_bar": False}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with one table of 200 rows; ``code`` is text that looks like numbers, ``empty`` holds nothing."""
    rng = np.random.default_rng(0)
    size = rng.normal(size=200)
    rows = pd.DataFrame(
        {
            "size": np.where(rng.random(200) < 0.1, np.nan, size),
            "code": rng.choice(["01", "1", None], size=200),
            "empty": None,
            "target": np.where(size > 0.5, "NA", "small"),
        }
    )
    folder = tmp_path / "tabular" / "toy"
    folder.mkdir(parents=True)
    (folder / "data.csv.gz").write_bytes(gzip.compress(rows.to_csv(index=False).encode()))
    (folder / "meta.json").write_text(json.dumps({"categorical": ["code"]}))
    return tmp_path


def test_reads_text_as_text(data: Path) -> None:
    table, y, categorical = read_table("toy", data)
    assert list(table) == ["size", "code", "empty"]
    assert categorical == ["code"]
    assert set(table["code"].dropna()) == {"01", "1"}
    assert set(y) == {0, 1}  # the class "NA" is a class and no missing value


def test_absent_table_names_both_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tabular/none/data\.csv\.gz, tabular/none/meta\.json"):
        read_table("none", tmp_path)


def test_numbers_are_imputed_by_the_median_and_standardized() -> None:
    train = pd.DataFrame({"a": [1.0, 2.0, np.nan, 9.0], "b": [3.0] * 4})
    features = preprocessing(["a", "b"], [], rare=2).fit(train)
    filled = np.array([1.0, 2.0, 2.0, 9.0])  # the constant column is gone, where a was missing is a column
    expected = (filled - filled.mean()) / filled.std()
    np.testing.assert_allclose(features.transform(train)[:, 0], expected)
    missing = features.transform(train)[:, 1]
    assert missing.argmax() == 2
    assert features.transform(train).shape == (4, 2)


def test_rare_unknown_and_missing_categories() -> None:
    train = pd.DataFrame({"c": ["x"] * 4 + ["y"] * 3 + ["rare", "odd"] + [None] * 2})
    features = preprocessing([], ["c"], rare=2).fit(train)
    rows = features.transform(pd.DataFrame({"c": ["x", "y", None, "rare", "odd", "never seen"]}))
    assert rows.shape == (6, 4)
    assert (rows.sum(axis=1) == 1).all()
    assert (rows[3] == rows[4]).all()
    assert (rows[3] == rows[5]).all()
    assert len(np.unique(rows[[0, 1, 2, 3]], axis=0)) == 4


def test_nothing_is_learned_from_validation_and_test_rows(data: Path) -> None:
    table, y, categorical = read_table("toy", data)
    numbered = divided(table.assign(size=np.arange(200.0)), y, categorical)
    rows = torch.cat([x[:, 0] for x, _ in numbered]).argsort().argsort()  # standardizing keeps the order
    others = rows[120:].numpy()
    changed = table.copy()
    changed.loc[others, "size"] = np.linspace(100, 900, num=len(others))
    changed.loc[others, "code"] = "other"
    kept, new = divided(table, y, categorical), divided(changed, y, categorical)
    torch.testing.assert_close(new[0][0], kept[0][0])
    assert new[1][0][:, 0].min() > 50


def test_parts_have_the_same_shares_of_classes(data: Path) -> None:
    table, y, categorical = read_table("toy", data)
    parts = divided(table, y, categorical)
    assert [len(part[1]) for part in parts] == [120, 40, 40]
    for _, own in parts:
        assert own.double().mean().item() == pytest.approx(y.mean(), abs=0.02)


def test_loss_weighs_classes_as_scikit_learn_does() -> None:
    y = torch.tensor([0] * 6 + [1] * 3 + [2])
    logits = torch.randn(10, 3)
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=y.numpy()))
    expected = (F.cross_entropy(logits, y, reduction="none") * weights[y]).mean()
    torch.testing.assert_close(BalancedCrossEntropy(y)(logits, y), expected, check_dtype=False)


def test_balanced_accuracy_by_hand() -> None:
    hits, counts = torch.tensor([1, 3, 0, 0]), torch.tensor([2, 3, 4, 0])  # the last class has no rows
    assert balanced_accuracy(hits, counts).item() == pytest.approx((1 / 2 + 1 + 0) / 3)


@pytest.mark.parametrize("seed", range(5))
def test_balanced_accuracy_is_scikit_learns_where_classes_are_absent(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (50,), generator=generator) * 2  # of 6 classes three do not occur, but are predicted
    logits = torch.randn(50, 6, generator=generator)
    metric = BalancedAccuracy(6)
    for first in range(0, 50, 16):
        metric.update(logits[first : first + 16], y[first : first + 16])
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        right = balanced_accuracy_score(y, logits.argmax(1))
    assert metric.compute().item() == pytest.approx(right, abs=1e-6)


def test_large_tables_take_fewer_epochs(data: Path) -> None:
    assert recipe("toy", data, epochs=60, steps=4000, batch_size=40).trainer["max_epochs"] == 60
    assert recipe("toy", data, epochs=60, steps=30, batch_size=40).trainer["max_epochs"] == 10
    assert recipe("toy", data, epochs=60, steps=1, batch_size=40).trainer["max_epochs"] == 3


def test_a_short_run_learns(data: Path) -> None:
    run = fit(recipe, parameters={"name": "toy", "data": data, "epochs": 20}, trainer=QUIET, logs=None)
    assert run.metrics["val/balanced_accuracy"] > 0.75


def test_numbers_are_encoded_on_request(data: Path) -> None:
    made = recipe("toy", data, bins=6, epochs=2)
    names = [type(plugin).__name__ for plugin in made.plugins]
    assert names[0] == "NumberEncoding"
    assert made.plugins[0].columns == [0]  # indicators are left out
    assert "NumberEncoding" not in [type(plugin).__name__ for plugin in recipe("toy", data).plugins]
    run = fit(made, logs=None, trainer={"enable_progress_bar": False})
    assert run.core.model[0].edges.shape == (1, 7)
