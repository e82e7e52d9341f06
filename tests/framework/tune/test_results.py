"""A study tells its best trials, importances, and where its files are."""

from __future__ import annotations

from pathlib import Path

from framework.tune import tune


def test_importances_and_summary(toy: Path, tmp_path: Path) -> None:
    study = tune(
        toy,
        trials=12,
        parameters={"epochs": 3, "width": 8},
        settings={"hidden_noise.rate": 0.1, "norm_penalty.alpha": 1e-3},
        search={"optimizer.lr": "1e-6,1e-1"},
        logs=tmp_path,
    )
    found = study.importances()
    assert abs(sum(found.values()) - 1.0) < 1e-6
    assert max(found, key=lambda name: found[name]) == "optimizer.lr"
    assert [one.number for one in study.ranking()[:1]] == [study.best.number if study.best else -1]
    text = study.summary()
    assert "study study: 12 completed" in text
    assert "importance" in text
    assert "on the test part (touched for it alone)" in text
    assert all((path / "checkpoints" / "best.ckpt").exists() for one in study.ranking() for path in study.runs(one))
    assert not any(tmp_path.glob("**/last.ckpt"))
