r"""Targets with a place in the image (masks, boxes, key points), and the layout that functions of images need.

A target is *dense* if its last two dimensions are the image's height and width: a value for each pixel, as a mask,
which goes where the pixels go. Whether other tensors of three and more dimensions have a place in the image (boxes
``(samples, boxes, 4)``, points ``(samples, points, 2)``, masks of another size) their shape does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from framework.errors import UserError

MOST_CHANNELS = 4  # of a photograph with transparency


def check_images(x: Any, who: str, *, ndim: int = 3) -> None:
    """Check that ``x`` is a batch of images whose last two dimensions are height and width.

    Channels are taken to be last where the last dimension has at most 4 entries and the two before it have more.

    Args:
        x: the input of a batch.
        who: the plugin or transform that errors name.
        ndim: the smallest number of dimensions.

    Raises:
        UserError: if ``x`` is no tensor of so many dimensions, or its channels are last.

    Example:
        >>> check_images(torch.zeros(2, 3, 8, 8), "RandomFlip()")
    """
    if not (isinstance(x, Tensor) and x.ndim >= ndim):
        have = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise UserError(
            f"{who}: needs images (samples, …, height, width) as one tensor, received {have}; to"
            " change one of several inputs, override transform_batch of the plugin"
        )
    if x.ndim > 3 and channels_last(x.shape[1:]):
        raise UserError(
            f"{who}: needs images of the layout (N, C, H, W), received {tuple(x.shape)}, whose channels are last;"
            " permute them in the data set"
        )


def channels_last(shape: tuple[int, ...]) -> bool:
    """Return whether the shape of an image ``(…, height, width, channels)`` has its channels last.

    Example:
        >>> channels_last((28, 28, 1)), channels_last((3, 28, 28)), channels_last((4, 4, 4))
        (True, False, False)
    """
    return shape[-1] <= MOST_CHANNELS < min(shape[-3:-1])


def shape_of(x: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor, an array or a PIL image; None for anything else."""
    shape = getattr(x, "shape", None)
    if shape is not None:
        return tuple(shape)
    if hasattr(x, "getbands") and hasattr(x, "size"):  # a PIL image
        return (x.size[1], x.size[0])
    return None


def size_of_image(x: Any, *, batched: bool) -> tuple[int, int] | None:
    """Return height and width of an image or of a batch of them; None for what has too few dimensions.

    Example:
        >>> size_of_image(torch.zeros(3, 8, 6), batched=False), size_of_image(torch.zeros(3, 8), batched=True)
        ((8, 6), None)
    """
    shape = shape_of(x)
    if shape is None or len(shape) < 2 + batched:
        return None
    last = len(shape) - batched == 3 and channels_last(shape[batched:])
    return (shape[-3], shape[-2]) if last else (shape[-2], shape[-1])


def place_of(target: Any, height: int, width: int, *, batched: bool = True) -> Literal["dense", "unclear", "none"]:
    """Return whether a part of a target has a value for each pixel; ``"unclear"`` where its shape does not tell.

    Class indices, vectors of numbers and anything that is no tensor have no place.

    Args:
        target: a tensor or NumPy array, or anything else.
        height: the image's height.
        width: the image's width.
        batched: whether the first dimension runs over samples.

    Example:
        >>> [place_of(torch.zeros(shape), 8, 6) for shape in ((5, 8, 6), (5, 7, 4), (5, 6))]
        ['dense', 'unclear', 'none']
    """
    shape = shape_of(target)
    if shape is None or len(shape) < 2 + batched:
        return "none"
    return "dense" if tuple(shape[-2:]) == (height, width) else "unclear"


def rows_of_numbers(tree: Any) -> Any:
    """Return the first list of lists of two and more numbers, such as boxes, in nested containers; else None.

    Example:
        >>> rows_of_numbers({"label": [3, 1], "boxes": [[1, 2, 5, 6], [0, 0, 2, 2]]})
        [[1, 2, 5, 6], [0, 0, 2, 2]]
    """
    if isinstance(tree, Mapping):
        return next((rows for part in tree.values() if (rows := rows_of_numbers(part)) is not None), None)
    if not isinstance(tree, (list, tuple)):
        return None
    if tree and isinstance(tree[0], (list, tuple)) and len(tree[0]) > 1 and all(map(_is_number, tree[0])):
        return tree
    return next((rows for part in tree if (rows := rows_of_numbers(part)) is not None), None)


def _is_number(item: Any) -> bool:
    return isinstance(item, (int, float)) or (isinstance(item, Tensor) and item.ndim <= 1)


def may_be_coordinates(target: Any, height: int, width: int) -> bool:
    """Return whether a target ``(samples, numbers)`` may be coordinates of pixels.

    It may where the numbers are an even number of floats or four whole numbers, none negative or above the image's
    longer side, and some above 1. Reads the values.

    Example:
        >>> may_be_coordinates(torch.tensor([[3.0, 5.0, 8.0, 9.0]]), 16, 16)
        True
        >>> may_be_coordinates(torch.tensor([[0.3, 0.7]]), 16, 16)
        False
    """
    if not (isinstance(target, Tensor) and target.ndim == 2 and target.numel()) or target.is_complex():
        return False
    if target.dtype == torch.bool or target.shape[1] % 2 or not (target.is_floating_point() or target.shape[1] == 4):
        return False
    low, high = torch.aminmax(target.detach())
    return bool(low >= 0) and 1 < float(high) <= max(height, width)


def coordinates_stay(who: str, target: Tensor) -> str:
    """Return the warning that numbers which may be coordinates do not follow the image."""
    return (
        f"{who}: the target {tuple(target.shape)} stays as it is while pixels move; if its numbers are coordinates,"
        " move them with the image in the data set (albumentations: keypoint_params or bbox_params), else give"
        " target='fixed', which ends this warning"
    )


def refused(who: str, target: Any, *, unclear: bool) -> UserError:
    """Return the error for a target that cannot follow its image.

    Args:
        who: plugin and transform.
        target: the part of the target.
        unclear: whether its shape does not tell where it belongs.
    """
    shape = shape_of(target) or (len(target), len(target[0]))
    if unclear:
        return UserError(
            f"{who}: the target {shape} may have a place in the image (boxes, key points, a mask of another size),"
            " which would not move with it; give target='fixed' if it has none, or move both in the data set"
        )
    return UserError(
        f"{who}: the target {shape} has the image's size, as a mask has, and the transform does not say how it changes"
        " it; set its attribute on_target: None if it moves no pixels, or a function that is called with the target and"
        " the same draws; or give target='fixed' if the target is to stay"
    )
