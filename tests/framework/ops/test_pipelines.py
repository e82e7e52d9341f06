"""Albumentations on one sample: image, masks and named parts in their own type and layout."""

from __future__ import annotations

import albumentations as A
import numpy as np
import pytest
import torch

from framework.errors import UserError
from framework.ops.pipelines import Pipeline, image_of

FLIP = A.HorizontalFlip(p=1.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.float32, torch.int32])
@pytest.mark.parametrize("shape", [(6, 8), (2, 6, 8), (7, 6, 8)])
def test_masks_keep_type_and_layout(dtype, shape):
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    pipe = Pipeline(A.Compose([FLIP, A.Affine(rotate=0, scale=1, p=1.0)]))
    _, (moved,), _ = pipe(torch.zeros(3, 6, 8), rng(), [mask])
    assert moved.dtype == dtype
    assert torch.equal(moved, mask.flip(-1))


def test_masks_of_whole_numbers_are_never_mixed():
    mask = torch.zeros(32, 32, dtype=torch.int64)
    mask[:16] = 70_000
    pipe = Pipeline(A.Compose([A.Affine(rotate=30, p=1.0)]))
    _, (moved,), _ = pipe(torch.zeros(1, 32, 32), rng(), [mask])
    assert set(moved.unique().tolist()) == {0, 70_000}


def test_arrays_with_channels_last_keep_them():
    mask = np.arange(6 * 8 * 2).reshape(6, 8, 2)
    _, (moved,), _ = Pipeline(A.Compose([FLIP]))(np.zeros((6, 8, 3), np.uint8), rng(), [mask])
    np.testing.assert_array_equal(moved, mask[:, ::-1])
    assert moved.dtype == mask.dtype


def test_boxes_with_labels_and_points_by_name():
    pipe = Pipeline(
        A.Compose(
            [FLIP],
            bbox_params=A.BboxParams(format="pascal_voc", label_fields=["labels"]),
            keypoint_params=A.KeypointParams(format="xy"),
        )
    )
    assert pipe.needed == ["bboxes", "labels", "keypoints"]
    named = {
        "bboxes": torch.tensor([[1.0, 2.0, 5.0, 6.0]]),
        "labels": torch.tensor([7]),
        "keypoints": [[3.0, 4.0]],
    }
    _, _, moved = pipe(torch.zeros(3, 8, 16), rng(), (), named)
    torch.testing.assert_close(moved["bboxes"], torch.tensor([[11.0, 2.0, 15.0, 6.0]]))
    assert torch.equal(moved["labels"], torch.tensor([7]))
    assert moved["keypoints"] == [[12.0, 4.0]]


def test_no_boxes_stay_no_boxes():
    pipe = Pipeline(A.Compose([FLIP], bbox_params=A.BboxParams(format="pascal_voc", label_fields=["labels"])))
    named = {"bboxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    _, _, moved = pipe(torch.zeros(3, 8, 16), rng(), (), named)
    assert moved["bboxes"].shape == (0, 4)
    assert moved["labels"].shape == (0,)


def test_one_point_as_a_vector():
    pipe = Pipeline(A.Compose([FLIP], keypoint_params=A.KeypointParams(format="xy")))
    _, _, moved = pipe(torch.zeros(3, 8, 16), rng(), (), {"keypoints": torch.tensor([3.0, 4.0])})
    assert moved["keypoints"].tolist() == [12.0, 4.0]
    away = Pipeline(A.Compose([A.Crop(8, 0, 16, 8)], keypoint_params=A.KeypointParams(format="xy")))
    with pytest.raises(UserError, match="remove_invisible=False"):
        away(torch.zeros(3, 8, 16), rng(), (), {"keypoints": torch.tensor([3.0, 4.0])})


def test_lists_with_labels_of_any_type():
    pipe = Pipeline(A.Compose([FLIP], bbox_params=A.BboxParams(format="pascal_voc")))
    _, _, moved = pipe(torch.zeros(3, 8, 16), rng(), (), {"bboxes": [[1.0, 2.0, 5.0, 6.0, 3]]})
    assert moved["bboxes"] == [[11.0, 2.0, 15.0, 6.0, 3.0]]


def test_more_images_and_masks_by_additional_targets():
    pipe = Pipeline(A.Compose([FLIP], additional_targets={"right": "image", "depth": "mask"}))
    right, depth = torch.rand(3, 6, 8), torch.rand(6, 8)
    _, _, moved = pipe(torch.zeros(3, 6, 8), rng(), (), {"right": right, "depth": depth})
    assert torch.equal(moved["right"], right.flip(-1))
    assert torch.equal(moved["depth"], depth.flip(-1))


def test_pipelines_that_move_no_pixels_take_no_masks():
    assert not Pipeline(A.Compose([A.GaussNoise(p=1.0)])).moves
    assert not Pipeline(A.GaussNoise(p=1.0)).moves
    assert Pipeline(A.Compose([A.OneOf([A.GaussNoise(p=1.0), FLIP])])).moves


def test_wrong_layouts_are_refused():
    with pytest.raises(UserError, match="layout"):
        image_of(torch.zeros(16, 16, 3))
    with pytest.raises(UserError, match="channels are first"):
        image_of(np.zeros((3, 16, 16)))
