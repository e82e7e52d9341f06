"""Speeches are read, padded and classified, by a random network and by one from a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from framework import UserError, fit
from framework.data.fetch import DataFile
from recipes import text_classifier
from recipes.text_classifier import padded, pretrained, read_speeches, recipe

QUIET = {"enable_progress_bar": False}


@pytest.fixture
def speeches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ROMEO speaks of love, and FIRST LORD of war, at differing length."""
    lines = [f"{who}:\n{' '.join([what] * (k % 7 + 1))}, {k}!\n\n" for k in range(60) for who, what in PAIRS]
    (tmp_path / "input.txt").write_text("".join(lines) + "NOBODY:\nI am one.\n")
    monkeypatch.setattr(text_classifier, "FILE", DataFile("input.txt"))
    return tmp_path


PAIRS = (("ROMEO", "sweet love"), ("FIRST LORD", "cruel war"))


def test_speeches_of_the_most_frequent_speakers(speeches: Path) -> None:
    texts, labels, names = read_speeches(speeches, 2)
    assert sorted(names) == ["FIRST LORD", "ROMEO"] and len(texts) == 120
    assert all(("love" in text) == (names[label] == "ROMEO") for text, label in zip(texts, labels, strict=True))


def test_a_batch_is_padded_to_its_longest_text() -> None:
    batch = padded([{"input_ids": [5, 6, 7], "labels": 1}, {"input_ids": [8], "labels": 0}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]] and batch["labels"].tolist() == [1, 0]


def test_it_learns_who_speaks(speeches: Path) -> None:
    parameters = {
        "data": speeches,
        "speakers": 2,
        "epochs": 4,
        "width": 16,
        "batch_size": 16,
        "tokens": 200,
        "lr": 0.01,
    }
    run = fit(recipe, parameters=parameters, trainer=QUIET, logs=None)
    assert run.metrics["val/accuracy"] > 0.9 and run.metrics["val/loss"] < 0.5


def test_a_network_of_a_folder(speeches: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    config = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertForSequenceClassification(config).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sweet", "love", "cruel", "war"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    model, encode = pretrained(folder, [], 3, 0, 16)
    assert len(encode("sweet love")) >= 2
    assert model(**padded([{"input_ids": encode("sweet love"), "labels": 2}])).logits.shape == (1, 3)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="needs the extra text"):
        pretrained(None, [], 2, 8, 8)
