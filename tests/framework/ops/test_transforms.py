from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from framework.errors import UserError
from framework.ops.draws import Draws
from framework.ops.transforms import (
    GaussianNoise,
    RandomAffine,
    RandomBrightnessContrast,
    RandomCrop,
    RandomCutout,
    RandomFlip,
)
from framework.plugin import Plugin
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step


class Changer(Plugin):
    pass


def step_of(count: int, start: int = 0, micro: int = 0, index: int = 0) -> Step:
    step = Step(0, WeightEdits())
    step.index, step.start, step.count, step.micro = index, start, count, micro
    return step


def draws_of(count: int, **where: int) -> Draws:
    return Draws(step_of(count, **where), Changer())


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


EVERY = [
    RandomFlip(),
    RandomFlip(axis="vertical"),
    RandomCrop(2),
    RandomCrop(2, fill="reflect"),
    RandomCrop(0, size=5),
    RandomAffine(),
    RandomCutout(4, 0.7),
    GaussianNoise(),
    RandomBrightnessContrast(),
]
ABSENT = [
    RandomFlip(0.0),
    RandomCrop(0),
    RandomAffine(0.0, 0.0),
    RandomCutout(0),
    RandomCutout(4, 0.0),
    GaussianNoise(0.0),
    RandomBrightnessContrast(0.0, 0.0),
]


# ---- what holds for each of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_micro_batches_are_changed_as_one_batch(transform):
    x = images(64, 3, 8, 10)
    whole = transform(x, draws_of(64))
    parts = [transform(x[i : i + 16], draws_of(16, start=i, micro=i // 16)) for i in range(0, 64, 16)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(transform(x, draws_of(64, index=1)), whole)


@pytest.mark.parametrize("transform", EVERY, ids=repr)
def test_each_sample_is_changed_in_its_own_way(transform):
    x = images(1, 3, 8, 10).expand(64, -1, -1, -1).contiguous()
    changed = transform(x, draws_of(64)).flatten(1)
    kinds = len(torch.unique(changed, dim=0))
    assert kinds == 2 if isinstance(transform, RandomFlip) else kinds >= 12


@pytest.mark.parametrize("transform", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_keep_their_type_and_stay_as_they_are(transform, dtype):
    x = images(8, 1, 8, 8).to(dtype)
    before = x.clone()
    assert transform(x, draws_of(8)).dtype == dtype
    assert torch.equal(x, before)


@pytest.mark.parametrize("transform", ABSENT, ids=repr)
def test_strength_zero_is_absent_bit_for_bit(transform):
    x = images(8, 3, 6, 6)
    assert torch.equal(transform(x, draws_of(8)), x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomFlip(1.5), "RandomFlip(probability=1.5): probability must be a number >= 0 and <= 1"),
        (lambda: RandomFlip(axis="left"), "'horizontal', 'vertical'"),
        (lambda: RandomCrop(-1), "RandomCrop(padding=-1)"),
        (lambda: RandomAffine(181.0), "RandomAffine(degrees=181.0)"),
        (lambda: RandomCutout(2.5), "RandomCutout(size=2.5): size must be a whole number"),
        (lambda: GaussianNoise(math.nan), "GaussianNoise(std=nan)"),
        (lambda: RandomBrightnessContrast(contrast=2.0), "contrast must be"),
    ],
)
def test_settings_out_of_bounds_are_refused(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value)


# ---- flips and crops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "dim"), [("horizontal", 3), ("vertical", 2)])
def test_flips_mirror_the_share_asked_for(axis, dim):
    x = images(1000, 1, 3, 4)
    y = RandomFlip(0.3, axis)(x, draws_of(1000))
    mirrored = (y == x.flip(dim)).flatten(1).all(1)
    assert torch.equal(y[~mirrored], x[~mirrored])
    assert stats.binomtest(int(mirrored.sum()), 1000, 0.3).pvalue > 0.01


@pytest.mark.parametrize(("fill", "mode"), [("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge")])
def test_random_crop_gives_every_window_of_the_padded_image_as_often(fill, mode):
    image = images(1, 1, 4, 5)
    padded = np.pad(image[0, 0].numpy(), 1, mode=mode)
    windows = np.stack([padded[t : t + 4, left : left + 5] for t in range(3) for left in range(3)])
    y = RandomCrop(1, fill=fill)(image.expand(900, -1, -1, -1), draws_of(900)).numpy()
    match = (y == windows[None]).all(axis=(2, 3))
    assert (match.sum(1) == 1).all()
    assert stats.chisquare(match.sum(0)).pvalue > 0.01


def test_random_crop_to_a_size():
    assert RandomCrop(0, size=3)(images(4, 2, 5, 6), draws_of(4)).shape == (4, 2, 3, 3)


@pytest.mark.parametrize("transform", [RandomCrop(1, size=9), RandomCrop(6, fill="reflect")])
def test_crops_that_do_not_fit_are_refused(transform):
    with pytest.raises(UserError, match="does not fit images of 6 x 6"):
        transform(images(2, 1, 6, 6), draws_of(2))


# ---- the others ------------------------------------------------------------------------------------------------------


def test_random_affine_draws_angle_and_scale_within_bounds():
    # a single bright pixel right of the centre tells both
    x = torch.zeros(400, 1, 41, 41)
    x[:, 0, 20, 34:37] = 1.0
    y = RandomAffine(30.0, 0.2)(x, draws_of(400))[:, 0]
    along = torch.arange(41.0) - 20
    mass = y.sum((1, 2))
    column, row = (y.sum(1) @ along) / mass, (y.sum(2) @ along) / mass
    angles, scales = torch.rad2deg(torch.atan2(-row, column)), torch.hypot(row, column) / 15
    assert angles.abs().max() < 30.5
    assert 1 / 1.2 - 0.02 < scales.min() < 0.85
    assert 1.15 < scales.max() < 1.22
    assert stats.kstest(angles.numpy(), stats.uniform(-30, 60).cdf).pvalue > 0.01


def test_cutout_hits_the_share_asked_for():
    x = torch.ones(1000, 1, 4, 4)
    hit = (RandomCutout(2, 0.25)(x, draws_of(1000)) == 0).flatten(1).any(1)
    assert stats.binomtest(int(hit.sum()), 1000, 0.25).pvalue > 0.01


def test_brightness_and_contrast_are_drawn_within_bounds():
    x = images(500, 1, 6, 6)
    y = RandomBrightnessContrast(0.3, 0.2)(x, draws_of(500))
    shift = (y.mean((1, 2, 3)) - x.mean((1, 2, 3))).numpy()
    spread = (y.flatten(1).std(1) / x.flatten(1).std(1) - 1).numpy()
    assert stats.kstest(shift, stats.uniform(-0.3, 0.6).cdf).pvalue > 0.01
    assert stats.kstest(spread, stats.uniform(-0.2, 0.4).cdf).pvalue > 0.01


def test_gaussian_noise_has_its_standard_deviation():
    y = GaussianNoise(0.5)(torch.ones(200, 1, 10, 10), draws_of(200))
    assert abs(y.mean() - 1) < 4 * 0.5 / math.sqrt(y.numel())
    assert abs(y.std() - 0.5) < 4 * 0.5 / math.sqrt(2 * y.numel())


# ---- masks and whole numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [t for t in EVERY if getattr(t, "on_target", None)][:-1], ids=repr)
def test_masks_of_any_number_of_dimensions_change_as_images_do(transform):
    x = torch.arange(8 * 3 * 8 * 10).view(8, 3, 8, 10)
    moved = transform.on_target(x, draws_of(8))
    assert moved.dtype == x.dtype
    assert torch.equal(transform.on_target(x[:, 1], draws_of(8)), moved[:, 1])
    assert torch.equal(transform.on_target(x[:, None], draws_of(8))[:, 0], moved)
    if not isinstance(transform, RandomAffine):
        assert torch.equal(transform(x, draws_of(8)), moved)
        assert torch.equal(transform(x.float(), draws_of(8)), moved.float())
    assert torch.equal(transform.on_target(x > 9, draws_of(8)), transform.on_target((x > 9).float(), draws_of(8)) > 0)


def test_rotated_masks_hold_only_values_that_were_there():
    x = torch.tensor([0, 7, 255])[torch.randint(3, (16, 8, 8), generator=torch.Generator().manual_seed(0))]
    assert set(RandomAffine(90.0).on_target(x, draws_of(16)).unique().tolist()) <= {0, 7, 255}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_whole_numbers_are_rotated_as_floats_and_rounded(dtype):
    x = (images(8, 1, 8, 8) * 200).to(dtype)
    expected = RandomAffine()(x.double() if dtype == torch.int64 else x.float(), draws_of(8)).round()
    assert torch.equal(RandomAffine()(x, draws_of(8)), expected.to(dtype))
    full = torch.full((8, 3, 8, 8), 200, dtype=dtype)
    assert (RandomAffine(fill="replicate")(full, draws_of(8)) == 200).all()


@pytest.mark.parametrize("transform", [GaussianNoise(), RandomBrightnessContrast()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_changes_of_values_need_floating_point_numbers(transform, dtype):
    with pytest.raises(UserError, match=f"needs floating-point numbers, received {dtype}"):
        transform(torch.ones(8, 1, 4, 4).to(dtype), draws_of(8))


def test_booleans_are_not_interpolated():
    with pytest.raises(UserError, match=r"received torch\.bool"):
        RandomAffine()(torch.ones(8, 1, 4, 4, dtype=torch.bool), draws_of(8))


@pytest.mark.parametrize("transform", [RandomFlip(), RandomCrop(2), RandomAffine(), RandomCutout(2)], ids=repr)
def test_channels_last_are_refused(transform):
    with pytest.raises(UserError, match="layout"):
        transform(torch.zeros(8, 16, 16, 3), draws_of(8))


def test_squares_in_masks_hold_what_is_declared():
    x = torch.ones(8, 1, 6, 6, dtype=torch.long)
    square = RandomCutout(3)(x, draws_of(8)) == 0
    assert torch.equal(RandomCutout(3, target=-1).on_target(x, draws_of(8)) == -1, square)
    assert RandomCutout(3, target="keep").on_target is None
    with pytest.raises(UserError, match="give target="):
        RandomCutout(3).on_target(x, draws_of(8))
