"""Pipelines of albumentations on one sample: its image, and the masks, boxes and key points that go with it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from framework.errors import UserError
from framework.ops.dense import channels_last


def image_of(x: Any) -> Any:
    """Return an image as a new array; the channels of a tensor ``(channels, height, width)`` become last.

    Example:
        >>> image_of(torch.zeros(3, 8, 4)).shape, image_of(torch.zeros(8, 4)).shape
        ((8, 4, 3), (8, 4))
    """
    if not isinstance(x, Tensor):
        image = np.array(x)
        if image.ndim == 3 and channels_last((*image.shape[1:], image.shape[0])):
            raise UserError(
                f"albumentations takes arrays (height, width, channels), received {image.shape}, whose channels are"
                " first; transpose it, or give a tensor"
            )
        return image
    if x.ndim == 3 and channels_last(tuple(x.shape)):
        raise UserError(
            f"albumentations: needs image tensors of the layout (C, H, W), received {tuple(x.shape)}, whose channels"
            " are last; permute them, or give arrays"
        )
    return np.array(x.permute(1, 2, 0).numpy() if x.ndim == 3 else x.numpy(), order="C")


def tensor_of(image: Any, ndim: int) -> Any:
    """Return an array ``(height, width[, channels])`` as a tensor of ``ndim`` dimensions with channels first.

    Example:
        >>> tensor_of(np.zeros((8, 4, 3)), 3).shape, tensor_of(np.zeros((8, 4)), 3).shape
        (torch.Size([3, 8, 4]), torch.Size([1, 8, 4]))
    """
    if isinstance(image, Tensor):  # the pipeline ends with ToTensorV2
        return image
    image = np.ascontiguousarray(image)
    # a view suffices, since collating the batch copies it
    tensor = torch.from_numpy(image.transpose(2, 0, 1) if image.ndim == 3 else image)
    return tensor[None] if tensor.ndim < ndim else tensor


class Pipeline:
    """An albumentations pipeline that draws from a keyed generator.

    All its transforms share one pair of generators. Seeding it instead (``set_random_seed``) takes many times as long
    and gives every transform the same draws, so that two flips of probability 1/2 always coincide.

    Args:
        pipeline: a ``Compose`` or a single transform.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._python = random.Random()
        self._rng: np.random.Generator | None = None
        self._known = 0  # masks that the pipeline has names for
        #: Whether it moves pixels: only such transforms take masks.
        self.moves = "mask" in getattr(pipeline, "available_keys", ("mask",))
        #: What it takes beside image and masks by its own parameters: the name, and what albumentations has under it.
        self.named: dict[str, str] = dict(getattr(pipeline, "additional_targets", None) or {})
        #: Those of them that it cannot do without: ``"bboxes"``, ``"keypoints"`` and their labels.
        self.needed: list[str] = []
        for name, processor in getattr(pipeline, "processors", {}).items():
            self.needed += [name, *(getattr(processor.params, "label_fields", None) or ())]
        self.named.update({name: name for name in self.needed})

    def __call__(
        self, x: Any, rng: np.random.Generator, masks: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> tuple[Any, list[Any], dict[str, Any]]:
        """Return image, masks and named parts as the pipeline leaves them, each in its own type and layout.

        Args:
            x: a tensor ``(channels, height, width)`` or ``(height, width)``, an array or a PIL image.
            rng: the generator of all draws.
            masks: tensors or arrays of the image's height and width, with values that are never mixed.
            named: other parts by the name under which the pipeline takes them.
        """
        if rng is not self._rng:  # a stream reuses one generator, which it seeds for each sample
            self._rng = rng
            self._pipeline.set_random_state(rng, self._python)
        self._python.seed(rng.random())
        image = image_of(x)
        parts = {name: self._taken(name, part) for name, part in (named or {}).items()}
        names = [f"mask_{index}_of_target" for index in range(len(masks))]
        if len(names) > self._known:  # a name each, since a list of masks must have one shape and one type
            self._pipeline.add_targets(dict.fromkeys(names[self._known :], "mask"))
            self._known = len(names)
        parts.update((name, _mask_of(mask, image)) for name, mask in zip(names, masks, strict=True))
        out = self._pipeline(image=image, **parts)
        changed = out["image"]
        back = [_as_mask(out[name], mask, image) for name, mask in zip(names, masks, strict=True)]
        others = {name: self._given_back(name, out[name], part) for name, part in (named or {}).items()}
        return tensor_of(changed, x.ndim) if isinstance(x, Tensor) else changed, back, others

    def _taken(self, name: str, part: Any) -> Any:
        if self.named[name] == "image":
            return image_of(part)
        array = part.detach().cpu().numpy() if isinstance(part, Tensor) else part
        if self.named[name] in ("bboxes", "keypoints"):
            if not isinstance(array, np.ndarray):
                return array  # lists may hold labels of any type behind the coordinates
            return np.array(array, dtype=np.float32, ndmin=2) if len(array) else np.zeros((0, 4), np.float32)
        return array

    def _given_back(self, name: str, new: Any, old: Any) -> Any:
        if self.named[name] == "image":
            return tensor_of(new, old.ndim) if isinstance(old, Tensor) else new
        if not isinstance(old, (Tensor, np.ndarray)):
            return type(old)(np.asarray(new).tolist()) if isinstance(old, (list, tuple)) else new
        array = np.asarray(new)
        if old.ndim == 1 and self.named[name] in ("bboxes", "keypoints"):  # a single one
            if len(new) != 1:
                raise UserError(
                    f"albumentations: the pipeline drops the only one of {name!r} where it leaves the image; let"
                    " keypoint_params keep it (remove_invisible=False), or give the target as (1, numbers)"
                )
            array = array.reshape(old.shape)
        elif old.ndim:
            array = array.reshape(len(new), *old.shape[1:]) if len(new) == 0 else array
        dtype = old.numpy().dtype if isinstance(old, Tensor) else old.dtype
        array = (np.rint(array) if array.dtype.kind == "f" and dtype.kind in "iu" else array).astype(dtype)
        return torch.from_numpy(array) if isinstance(old, Tensor) else array


def _mask_of(mask: Any, image: NDArray[Any]) -> NDArray[Any]:
    """Return a mask as an array ``(height, width[, channels])`` of a type that albumentations interpolates."""
    array = np.array(mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask)
    if array.ndim > 2 and _channels_first(mask, image):
        array = array.reshape(-1, *array.shape[-2:]).transpose(1, 2, 0)
    if array.dtype == np.bool_:
        return np.ascontiguousarray(array, dtype=np.uint8)
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2:
        # OpenCV takes no such numbers; floats hold them exactly up to 2^24 and 2^53
        array = array.astype(np.float32 if not array.size or np.abs(array).max() < 1 << 24 else np.float64)
    return np.ascontiguousarray(array)


def _as_mask(new: Any, old: Any, image: NDArray[Any]) -> Any:
    """Return what the pipeline made of a mask in the mask's own type and layout."""
    array = new.numpy() if isinstance(new, Tensor) else np.asarray(new)
    like = old.numpy() if isinstance(old, Tensor) else np.asarray(old)
    if like.ndim > 2 and _channels_first(old, image):
        array = array[..., None] if array.ndim == 2 else array
        array = array.transpose(2, 0, 1)
        array = array.reshape(*like.shape[:-2], *array.shape[-2:])
    if like.dtype.kind in "iu" and array.dtype.kind == "f":
        array = np.rint(array)
    array = np.ascontiguousarray(array.astype(like.dtype))
    return torch.from_numpy(array) if isinstance(old, Tensor) else array


def _channels_first(mask: Any, image: NDArray[Any]) -> bool:
    """Return whether a mask's last dimensions are the image's height and width."""
    return tuple(mask.shape[-2:]) == image.shape[:2]
