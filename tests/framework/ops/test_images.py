from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch.nn import functional

from framework.ops.images import affine, brightness_contrast, crop, cutout, flip, random_centres


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_flip_works_on_whole_numbers():
    assert flip(torch.tensor([[[1, 2]]], dtype=torch.uint8), torch.tensor([True])).tolist() == [[[2, 1]]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
@pytest.mark.parametrize("dim", [-1, -2])
def test_flip_equals_a_choice_image_by_image(dim, kind, layout):
    x = (images(6, 3, 9, 7) * 255).to(kind).contiguous(memory_format=layout)
    for flipped in (torch.tensor([True, False, False, True, True, False]), torch.zeros(6) > 0, torch.ones(6) > 0):
        expected = [image.flip(dim) if one else image for image, one in zip(x, flipped, strict=True)]
        assert torch.equal(flip(x, flipped, dim), torch.stack(expected))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_equals_slices(channels, kind, layout):
    x = (images(6, channels, 9, 7) * 255).to(kind).contiguous(memory_format=layout)
    corners = torch.tensor([[0, 0], [4, 3], [1, 2], [3, 0], [0, 3], [2, 1]])
    expected = torch.stack([image[:, t : t + 5, left : left + 4] for image, (t, left) in zip(x, corners, strict=True)])
    assert torch.equal(crop(x, corners, (5, 4)), expected)


def test_centres_are_uniform_over_all_pixels_and_stay_inside():
    u = images(6000, 2)
    counts = torch.bincount(random_centres(u, 3, 4) @ torch.tensor([4, 1]), minlength=12)
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    largest = torch.full((1, 2), 1 - 2**-24)
    for length in (3, 7, 28, 33, 255, 1023):
        assert random_centres(largest, length, length).tolist() == [[length - 1, length - 1]]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_quarter_turns_are_those_of_numpy(degrees):
    x = images(2, 3, 6, 6)
    turned = affine(x, torch.full((2,), math.radians(degrees)), torch.ones(2))
    expected = torch.from_numpy(np.rot90(x.numpy(), degrees // 90, axes=(2, 3)).copy())
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("degrees", "scale"), [(20.0, 1.0), (-35.0, 1.3), (0.0, 0.8)])
def test_affine_equals_scipys_on_images_that_are_not_square(degrees, scale):
    x = functional.avg_pool2d(images(1, 1, 24, 32), 3, 1)
    height, width = x.shape[-2:]
    angle = math.radians(degrees)
    # scipy: output at index o is input at matrix @ o + offset, in (row, column)
    matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / scale
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    expected = ndimage.affine_transform(x[0, 0].numpy(), matrix, centre - matrix @ centre, order=1, mode="constant")
    actual = affine(x, torch.tensor([angle]), torch.tensor([scale]))[0, 0].numpy()
    inside = expected[4:-4, 8:-8]
    np.testing.assert_allclose(actual[4:-4, 8:-8][inside > 0], inside[inside > 0], atol=2e-5)
    assert (inside > 0).mean() > 0.8


def test_cutout_equals_slices_and_clips_at_the_border():
    x = images(5, 2, 7, 9) + 1
    centres = torch.tensor([[0, 0], [3, 4], [6, 8], [0, 8], [2, 1]])
    for size in (1, 2, 3, 4, 20):
        expected = x.clone()
        for image, (row, column) in zip(expected, centres.tolist(), strict=True):
            top, left = row - size // 2, column - size // 2
            image[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
        assert torch.equal(cutout(x, centres, size), expected)


def test_cutout_works_on_whole_numbers():
    x = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert cutout(x, torch.tensor([[0, 0]]), 1).tolist() == [[[[0, 255], [255, 255]]]]


def test_brightness_and_contrast_move_mean_and_spread_of_each_image():
    x = images(4, 3, 5, 5, seed=1)
    brightness, contrast = torch.tensor([0.0, 0.5, -0.2, 0.1]), torch.tensor([0.0, 0.0, 1.0, -1.0])
    y = brightness_contrast(x, brightness, contrast)
    torch.testing.assert_close(y.flatten(1).mean(1), x.flatten(1).mean(1) + brightness)
    torch.testing.assert_close(y.flatten(1).std(1), x.flatten(1).std(1) * (1 + contrast), atol=1e-6, rtol=1e-5)
