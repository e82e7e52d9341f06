"""Fashion-MNIST: the idx format, the split, the size of the network."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from framework import UserError, fit
from recipes import fashion_mnist
from recipes.fashion_mnist import network, read_fashion_mnist, read_idx, recipe

QUIET = {"enable_progress_bar": False}


@pytest.fixture
def data(clothes: Path) -> Path:
    return clothes


def idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes())


def test_reads_idx_of_any_number_of_dimensions(tmp_path: Path) -> None:
    for shape in ((5,), (2, 3, 4)):
        array = np.arange(np.prod(shape)).reshape(shape)
        (tmp_path / f"{len(shape)}.gz").write_bytes(idx(array))
        assert read_idx(tmp_path / f"{len(shape)}.gz").tolist() == array.tolist()


def test_split_keeps_images_with_their_classes(data: Path) -> None:
    parts = read_fashion_mnist(data)
    assert [tuple(x.shape) for x, _ in parts] == [(60, 1, 28, 28), (5000, 1, 28, 28), (40, 1, 28, 28)]
    for x, y in parts:
        assert torch.equal(((x.mean(dim=(1, 2, 3)) * 255 - 20) / 20).long(), y)
        assert 0 <= x.min() < x.max() <= 1


def test_network_has_fewer_than_100_000_weights() -> None:
    assert sum(p.numel() for p in network(16).parameters()) < 100_000


def test_absent_files_are_all_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "FILES", [fashion_mnist.DataFile(file.path) for file in fashion_mnist.FILES])
    with pytest.raises(UserError, match=r"train-images.*train-labels.*t10k-images.*t10k-labels"):
        recipe(tmp_path)


def test_a_short_run_learns_and_augments_the_training_part_alone(data: Path) -> None:
    parameters = {"data": data, "epochs": 5, "batch_size": 10, "width": 2, "workers": 0}
    run = fit(recipe, parameters=parameters, trainer=QUIET, logs=None)
    history = [entry.metrics["train/loss"] for entry in run.core.recorder.history]
    assert history[-1] < history[0]
    assert run.metrics["val/accuracy"] > 0.1
    images = read_fashion_mnist(data)[0][0]
    plugin = next(plugin for plugin in run.core.plugins if plugin.name == "augmentation")
    changed, _ = plugin.transform_sample((images[0], 0), np.random.default_rng(0))
    assert changed.shape == images[0].shape
    assert changed.dtype == images.dtype
    assert not torch.equal(changed, images[0])
