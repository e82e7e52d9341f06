"""Which targets have a place in the image, and which layouts are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from framework.errors import UserError
from framework.ops.dense import channels_last, check_images, may_be_coordinates, place_of, refused, size_of_image


@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((5,), "none"),
        ((5, 10), "none"),
        ((5, 8, 6), "dense"),
        ((5, 2, 8, 6), "dense"),
        ((5, 2, 3, 8, 6), "dense"),
        ((5, 6, 8), "unclear"),
        ((5, 7, 4), "unclear"),
        ((5, 4, 4, 3), "unclear"),
    ],
)
def test_place_of_a_batchs_target(shape, place):
    assert place_of(torch.zeros(shape), 8, 6) == place
    assert place_of(torch.zeros(shape)[0], 8, 6, batched=False) == place


def test_what_is_no_array_has_no_place_and_a_pil_image_has():
    assert place_of("cat", 8, 6) == place_of(3, 8, 6, batched=False) == "none"
    assert place_of(Image.new("L", (6, 8)), 8, 6, batched=False) == "dense"
    assert size_of_image(Image.new("RGB", (6, 8)), batched=False) == (8, 6)
    assert size_of_image(np.zeros((8, 6, 3)), batched=False) == (8, 6)
    assert size_of_image(torch.zeros(2, 3, 8, 6), batched=True) == (8, 6)


def test_channels_are_last_where_the_last_dimension_alone_is_small():
    assert [channels_last(shape) for shape in ((28, 28, 1), (8, 6, 4))] == [True, True]
    assert [channels_last(shape) for shape in ((3, 28, 28), (1, 8, 4), (4, 4, 4), (64, 4, 4))] == [False] * 4


@pytest.mark.parametrize("shape", [(2, 16, 16, 3), (2, 28, 28, 1), (2, 5, 16, 16, 4)])
def test_images_with_channels_last_are_refused(shape):
    with pytest.raises(UserError, match=r"Flip: needs images of the layout \(N, C, H, W\), received \(2, "):
        check_images(torch.zeros(shape), "Flip")
    check_images(torch.zeros(shape).movedim(-1, 1), "Flip")


@pytest.mark.parametrize("x", [torch.zeros(4, 8), None, (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1))])
def test_what_is_no_batch_of_images_is_refused(x):
    with pytest.raises(UserError, match="Flip: needs images"):
        check_images(x, "Flip")


def test_numbers_that_may_be_coordinates():
    assert may_be_coordinates(torch.tensor([[3.0, 5.0]]), 8, 16)
    assert may_be_coordinates(torch.tensor([[0, 0, 15, 7]]), 8, 16)
    for other in ([[0.2, 0.8]], [[-1.0, 5.0]], [[3.0, 17.0]], [[3.0, 5.0, 1.0]], [[1, 5]], [3.0, 5.0]):
        assert not may_be_coordinates(torch.tensor(other), 8, 16)


def test_refusals_say_what_to_declare():
    assert "on_target" in str(refused("P", torch.zeros(2, 8, 8), unclear=False))
    assert "target='fixed'" in str(refused("P", torch.zeros(2, 7, 4), unclear=True))
