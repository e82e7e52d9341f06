"""Data folders that recipes share: files in the format of the real ones, small and made up."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from recipes import fashion_mnist


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an idx file of bytes, compressed."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.fixture
def clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 5,060 training and 40 test images whose brightness gives the class."""
    rng = np.random.default_rng(0)
    files = [fashion_mnist.DataFile(file.path) for file in fashion_mnist.FILES]
    for images, labels, count in ((files[0], files[1], 5060), (files[2], files[3], 40)):
        y = rng.integers(10, size=count)
        x = np.broadcast_to(20 + 20 * y[:, None, None], (count, 28, 28)) + rng.integers(10, size=(count, 28, 28))
        write_idx(tmp_path / Path(images.path).name, x)
        write_idx(tmp_path / Path(labels.path).name, y)
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    return tmp_path
