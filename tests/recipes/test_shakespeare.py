"""Shakespeare: texts and their successors, bits a character, and the sample at the end."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
import torch

from framework import fit
from framework import test as evaluate
from recipes import shakespeare
from recipes.shakespeare import NextCharacter, bits, read_shakespeare, recipe

TEXT = "\nThe quality of mercy is not strained.\n" * 400
QUIET = {"enable_progress_bar": False}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "input.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    monkeypatch.setattr(shakespeare, "FILE", shakespeare.DataFile(shakespeare.FILE.path))
    return tmp_path


def test_targets_are_the_next_characters(data: Path) -> None:
    parts, alphabet = read_shakespeare(data, length=16)
    for x, y in parts:
        assert torch.equal(x[:, 1:], y[:, :-1])
    x, y = parts[0]
    assert "".join(alphabet[code] for code in x.flatten()) == TEXT[: x.numel()]
    assert torch.equal(y[:-1, -1], x[1:, 0])


def test_parts_do_not_overlap(data: Path) -> None:
    (train, val, test), _ = read_shakespeare(data, length=16)
    assert train[0].numel() + 1 <= 0.9 * len(TEXT)
    assert [x.shape[1] for x, _ in (train, val, test)] == [16, 512, 512]
    assert val[0].numel() + test[0].numel() + 2 <= 0.1 * len(TEXT) + 1


def test_bits_of_equal_chances() -> None:
    assert bits(torch.zeros(2, 3, 32), torch.zeros(2, 3, dtype=torch.long)).item() == pytest.approx(5.0)


def test_bits_against_the_formula() -> None:
    logits, text = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    p = logits.softmax(dim=2)
    expected = -sum(math.log2(p[n, t, text[n, t]]) for n in range(2) for t in range(3)) / 6
    assert bits(logits, text).item() == pytest.approx(expected, rel=1e-5)


def test_writing_carries_the_state_on() -> None:
    """A network that is sure of the alphabet's order writes it, one character from the one before."""
    model = NextCharacter("\nabc", width=8)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        # each hidden unit answers one character of the input, and the head answers the next
        model.embedding.weight[:, :4] = 100 * torch.eye(4)
        model.lstm.bias_ih_l0[:8] = 100.0  # input gates open
        model.lstm.bias_ih_l0[8:16] = -100.0  # forget all
        model.lstm.bias_ih_l0[24:] = 100.0  # output gates open
        model.lstm.weight_ih_l0[16:20, :4] = torch.eye(4)
        model.head.weight[:, :4] = 1000 * torch.eye(4).roll(1, dims=0)
    assert model.write(7) == "abc\nabc"


def test_sample_is_printed_after_training_and_after_the_test(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = {"data": data, "epochs": 1, "width": 8, "length": 32, "sample": 40}
    run = fit(recipe, parameters=parameters, trainer=QUIET, logs=None)
    written = capsys.readouterr().out
    assert len(written.strip("\n")) >= 30
    evaluate(run)
    assert len(capsys.readouterr().out) >= 40


def test_a_short_run_learns(data: Path) -> None:
    parameters = {"data": data, "epochs": 6, "width": 32, "length": 32, "batch_size": 16, "lr": 1e-2, "sample": 0}
    run = fit(recipe, parameters=parameters, trainer=QUIET, logs=None)
    assert run.metrics["val/loss"] < 3.0 < math.log2(len(set(TEXT)))
