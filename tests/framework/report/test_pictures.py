from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from framework.data import Data
from framework.report.pictures import grid, is_pictures, raw_pictures, span


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((2, 1, 8, 8), True), ((2, 3, 4, 9), True), ((2, 64), False), ((2, 2, 8, 8), False), ((2, 3, 3, 8), False)],
)
def test_is_pictures(shape: tuple[int, ...], expected: bool) -> None:
    assert is_pictures(torch.zeros(shape)) is expected


def test_what_is_no_tensor_is_no_pictures() -> None:
    assert not is_pictures([torch.zeros(1, 8, 8)])


def test_grid_puts_pictures_row_by_row() -> None:
    pictures = torch.stack([torch.full((1, 48, 50), float(n)) for n in range(10)])
    sheet = grid(pictures, 0, 9)
    assert sheet.shape == (1, 2 * 48 + 2, 8 * 50 + 7 * 2)
    for n in range(10):
        top, left = n // 8 * 50, n % 8 * 52
        assert torch.allclose(sheet[0, top : top + 48, left : left + 50], torch.tensor(n / 9))
    assert (sheet[0, 48:50] == 0.5).all()  # the row in between
    assert (sheet[0, 50:, 2 * 52 :] == 0.5).all()  # no ninth and tenth neighbour


def test_grid_enlarges_by_whole_pixels() -> None:
    picture = torch.rand(1, 3, 8, 10)
    sheet = grid(picture, 0, 1)
    assert sheet.shape == (3, 48, 60)
    assert torch.equal(sheet[:, ::6, ::6], picture[0])
    assert torch.equal(sheet[:, 5::6, 5::6], picture[0])


def test_grid_cuts_what_lies_outside_and_survives_anything() -> None:
    picture = torch.tensor([-1.0, 3.0, float("nan"), float("inf")]).repeat(4, 1)[None, None]
    sheet = grid(picture, 0, 2)
    assert sheet[0, 0, ::12].tolist() == [0, 1, 0, 1]
    assert torch.isfinite(grid(torch.ones(1, 1, 4, 4), 1, 1)).all()


def test_span() -> None:
    assert span(torch.tensor([[-1.5, 2.0]])) == (-1.5, 2.0)
    assert span(torch.tensor([3], dtype=torch.uint8)) == (0.0, 255.0)


class Images(torch.utils.data.Dataset[Any]):
    """Pictures as an image library gives them, with draws from the global generators."""

    def __init__(self, shape: tuple[int, ...], kind: type = np.ndarray) -> None:
        self.shape, self.kind = shape, kind

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        value = index + torch.rand(()).item() / 10 + random.random() / 10 + np.random.rand() / 10  # noqa: NPY002
        picture = np.full(self.shape, value)
        return (picture if self.kind is np.ndarray else self.kind(picture)), 0


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (1, 8, 8), (3, 8, 8)])
def test_raw_pictures_are_of_the_samples_that_come_next(shape: tuple[int, ...]) -> None:
    loader = Data(Images(shape), batch_size=6).train_loader(seed=3)
    raw = raw_pictures(loader, 32)
    assert raw is not None
    assert raw.shape == (6, 3 if 3 in shape else 1, 8, 8)
    (pictures, _), *_ = next(iter(loader)).batches
    assert torch.equal(raw.flatten(1)[:, 0], pictures.flatten(1)[:, 0])  # the very draws of the data set, too


def test_raw_pictures_leave_all_as_it_was() -> None:
    data = Data(Images((8, 8)), batch_size=6)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002

    def draws() -> list[float]:
        return [torch.rand(()).item(), random.random(), np.random.rand()]  # noqa: NPY002

    expected = draws()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    loader = data.train_loader(seed=0)
    assert raw_pictures(loader, 4) is not None
    assert draws() == expected
    windows = [window.batches[0][0] for window in loader]
    untouched = [window.batches[0][0] for window in data.train_loader(seed=0)]
    assert all(torch.equal(a, b) for a, b in zip(windows, untouched, strict=True))


def test_raw_pictures_after_a_resume_within_an_epoch() -> None:
    x = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 1, 8, 8)
    loader = Data((x, torch.zeros(20)), batch_size=6).train_loader(seed=0)
    loader.epoch, loader.start = 2, 1
    raw = raw_pictures(loader, 2)
    assert raw is not None
    assert torch.equal(raw, next(iter(loader)).batches[0][0][:2])


def _as_text(picture: np.ndarray) -> str:
    return str(picture)


@pytest.mark.parametrize("part", [Images((64,)), Images((8, 8), kind=_as_text), (torch.zeros(9, 64), torch.zeros(9))])  # type: ignore[arg-type]
def test_no_raw_pictures_of_what_is_none(part: torch.utils.data.Dataset[Any] | tuple[Tensor, ...]) -> None:
    assert raw_pictures(Data(part, batch_size=4).train_loader(seed=0), 4) is None
