"""Data augmentation: random changes of single samples in the loader's workers, or of batches on the device."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from framework.data import entry, has_entry, input_of, items_of, leaves_of, map_rest, replace, rest_of, target_of
from framework.errors import UserError
from framework.ops.dense import (
    coordinates_stay,
    may_be_coordinates,
    place_of,
    refused,
    rows_of_numbers,
    size_of_image,
)
from framework.ops.draws import Draws, keyed_globals
from framework.ops.pipelines import Pipeline
from framework.ops.transforms import RandomCrop, RandomFlip
from framework.plugin import LintWarning, Plugin, Step


class Augmentation(Plugin):
    r"""Augment training samples with random transforms, independently for each sample and epoch.

    .. math:: J = L(f(t(x)), y), \qquad t \sim T

    Training on transformed inputs with the original target teaches the network to be invariant to the transforms.
    Evaluation uses the samples as they are.

    **A sample at a time**, in the loader's workers, on the input of ``(input, target)``:

    - an albumentations ``Compose`` (or a single transform). A tensor ``(channels, height, width)`` is passed as an
      array ``(height, width, channels)`` of the same type and converted back to a tensor; for an array or a PIL image
      the pipeline's result is used as it is, so such a pipeline ends with ``ToTensorV2``.
    - a callable ``(input, rng)`` with a parameter of that name; ``rng`` is a keyed ``numpy.random.Generator``.
    - any other callable of the input alone, such as torchvision's: the global generators of torch, NumPy and Python
      are seeded around each call and restored, which costs some 70 microseconds.

    **A batch at a time**, on the device and many times as fast: callables ``(x, draws)`` as in
    :mod:`framework.ops.transforms`, in order; ``draws`` gives each sample its own draws. A callable of ``x`` alone is
    called with the global generators seeded.

    Draws are keyed by run seed, epoch (or step) and sample, so they differ between samples, epochs, workers and ranks
    and are the same for any number of workers. Batch transforms that take ``draws`` give the same result however a
    step is split into micro-batches and ranks; those of ``x`` alone draw separately in each micro-batch.

    **Targets with a place in the image** go where its pixels go, from draws of the same keys. A mask is any tensor of
    the batch, beside the input, whose last two dimensions are the image's height and width; its values are never
    interpolated. The transforms of :mod:`framework.ops.transforms` change masks, albumentations masks too, and boxes
    and key points where the pipeline has ``bbox_params`` or ``keypoint_params``: they are the target, or its entries
    (or the sample's) of the names ``"bboxes"``, ``"keypoints"``, ``label_fields`` and ``additional_targets``. A
    callable of your own says by its attribute ``on_target`` what it does with a mask: None if it moves no pixels, or a
    function ``(target, draws)``, ``(target, rng)`` or ``(target)``: the same arguments, and the same draws. Anything
    else that has a place, or may have, is refused.

    Args:
        sample: transform of one sample, None for none; data in memory then need no loader workers.
        batch: transforms of a batch, applied in order.
        target: None: masks follow the image, as above. ``"fixed"``: the target has no place in the image, and
            stays as it is whatever its shape.

    Raises:
        UserError: if a callable takes other arguments, or a target cannot follow its image.

    Example:
        >>> from framework.ops.transforms import RandomCrop, RandomFlip
        >>> Augmentation(batch=[RandomFlip(), RandomCrop(4)]).describe()  # doctest: +ELLIPSIS
        "Augmentation(batch=[RandomFlip(probability=0.5, axis='horizontal'), RandomCrop(padding=4, ...)])"

    Interacts with:
        ``Cutout``, ``InputNoise``, ``Mixup``, ``CutMix``: place those after it, so that they act on augmented samples.

    Suggested: for photographs of 32 x 32 flips and crops with padding 4; for digits and drawings crops with padding 2
    and rotations of up to 10 degrees, without flips for digits.

    Source: Goodfellow, Bengio and Courville (2016), Deep Learning, section 7.4; Shorten and Khoshgoftaar (2019), A
    survey on image data augmentation for deep learning.
    """

    sample: Callable[..., Any] | None = None
    batch: Sequence[Callable[..., Tensor]] = ()
    target: Literal["fixed"] | None = None

    examples = ({"batch": (RandomFlip(), RandomCrop(2))}, {"sample": nn.functional.dropout})
    absent = ({"batch": ()}, {"sample": None})

    def check(self) -> None:
        """Check the arguments that the callables take."""
        if self.sample is not None and not _is_albumentations(self.sample):
            _takes("sample", self.sample, "input", "rng")
        for transform in self.batch:
            if _is_albumentations(transform):
                raise UserError(f"Augmentation(batch={_name(transform)}): albumentations changes samples; use sample=")
            _takes("batch", transform, "x", "draws")

    def answers_at(self, hook: str) -> bool:
        """Answer only at the hooks that are used, so that batch transforms alone need no loader workers."""
        return bool(self.batch) if hook == "transform_batch" else self.sample is not None or hook != "transform_sample"

    @functools.cached_property
    def pipeline_(self) -> Pipeline | None:
        """The albumentations pipeline, None for another callable."""
        # a copy, since plugins or runs that share a pipeline would overwrite each other's generators
        return Pipeline(copy.deepcopy(self.sample)) if _is_albumentations(self.sample) else None

    @functools.cached_property
    def looked_(self) -> list[bool]:
        """Filled once the first target was looked at for coordinates."""
        return []

    @functools.cached_property
    def sample_keyed_(self) -> bool:
        """Whether the transform of one sample takes a generator."""
        return _takes("sample", self.sample, "input", "rng")

    @functools.cached_property
    def change_batch_(self) -> list[tuple[Callable[..., Tensor], str, bool]]:
        """Each transform of a batch, the name that keys its draws, and whether it takes ``draws``."""
        seen: Counter[str] = Counter()
        listed = []
        for transform in self.batch:
            # keyed by name, not by position: adding a transform does not change the draws of others
            name = _name(transform)
            seen[name] += 1
            listed.append((transform, f"{name}{seen[name]}", _takes("batch", transform, "x", "draws")))
        return listed

    def transform_sample(self, sample: Any, rng: np.random.Generator) -> Any:
        """Return the sample with its input transformed, and what has a place in the image with it."""
        if self.sample is None:
            return sample
        x = input_of(sample)
        if self.pipeline_ is not None:  # which copies the image itself
            return self._piped(self.pipeline_, sample, x, rng)
        masks = self._masks(sample, x, self.sample, batched=False)
        # a copy, since a data set in memory returns views and a transform may work in place
        x = x.clone() if isinstance(x, Tensor) else x.copy() if isinstance(x, np.ndarray) else x
        if not masks:
            return replace(sample, input=self._drawn(self.sample, x, rng))
        state, on_target = rng.bit_generator.state, self.sample.on_target  # type: ignore[attr-defined]
        moved = {}
        for mask in masks:
            rng.bit_generator.state = state
            moved[id(mask)] = self._drawn(on_target, mask.clone() if isinstance(mask, Tensor) else mask.copy(), rng)
        rng.bit_generator.state = state
        changed = map_rest(sample, functools.partial(_given, moved))
        return replace(changed, input=self._drawn(self.sample, x, rng))

    def _drawn(self, transform: Callable[..., Any], x: Any, rng: np.random.Generator) -> Any:
        if self.sample_keyed_:
            return transform(x, rng)
        with keyed_globals(int(rng.integers(1 << 63))):
            return transform(x)

    def _piped(self, pipeline: Pipeline, sample: Any, x: Any, rng: np.random.Generator) -> Any:
        if self.target == "fixed":
            return replace(sample, input=pipeline(x, rng)[0])
        named = self._named(pipeline, sample) if pipeline.named else {}
        taken = {id(part) for part in named.values()}
        masks: list[Any] = []
        if pipeline.moves:
            masks = self._masks(sample, x, None, batched=False, without=taken)
        image, masked, parts = pipeline(x, rng, masks, named)
        if masks or named:
            new = {id(old): value for old, value in zip(masks, masked, strict=True)}
            new |= {id(named[name]): value for name, value in parts.items()}
            sample = map_rest(sample, functools.partial(_given, new), new)
        return replace(sample, input=image)

    def _named(self, pipeline: Pipeline, sample: Any) -> dict[str, Any]:
        """Return what the pipeline takes by name, from the target, the sample or the target as a whole."""
        found: dict[str, Any] = {}
        target = target_of(sample)
        for holder in (sample, target):
            found.update({name: entry(holder, name) for name in pipeline.named if has_entry(holder, name)})
        missing = [name for name in pipeline.needed if name not in found]
        if missing == pipeline.needed and len(missing) == 1 and isinstance(target, (Tensor, np.ndarray, list, tuple)):
            return {missing[0]: target, **found}
        if missing:
            raise UserError(
                f"Augmentation(sample={_name(self.sample)}): the pipeline's parameters ask for"
                f" {', '.join(map(repr, pipeline.needed))}, and the target has no {', '.join(map(repr, missing))};"
                " give it as a mapping with these names, drop bbox_params and keypoint_params, or give target='fixed'"
            )
        return found

    def _masks(self, batch: Any, x: Any, transform: Any, *, batched: bool, without: Collection[int] = ()) -> list[Any]:
        """Return the parts beside the input that have the image's size and are to change with it.

        Args:
            batch: a batch or a sample.
            x: its input.
            transform: what must declare how it changes them, None for a pipeline, which takes any.
            batched: whether the first dimension runs over samples.
            without: ids of parts that are taken already.
        """
        if self.target == "fixed" or (transform is not None and getattr(transform, "on_target", ...) is None):
            return []
        images = [x] if isinstance(x, Tensor) else leaves_of(x)
        size = next((size for image in images if (size := size_of_image(image, batched=batched))), None)
        if size is None:
            return []
        if not self.looked_:
            self._look(batch, x, size, self._who(transform), batched=batched, without=without)
        masks = []
        for leaf in rest_of(batch, without):
            place = place_of(leaf, *size, batched=batched)
            if place == "none" or id(leaf) in without:
                continue
            if place == "unclear" or (transform is not None and not hasattr(transform, "on_target")):
                raise refused(self._who(transform), leaf, unclear=place == "unclear")
            masks.append(leaf)
        return masks

    def _look(
        self, batch: Any, x: Any, size: tuple[int, int], who: str, *, batched: bool, without: Collection[int]
    ) -> None:
        """Look once for coordinates that no shape tells: refuse lists of boxes, and name numbers that may be some."""
        self.looked_.append(True)
        rows = rows_of_numbers([part for _, part in items_of(batch) if part is not x and id(part) not in without])
        if rows is not None and id(rows) not in without:
            raise refused(who, rows, unclear=True)
        for leaf in rest_of(batch, without):
            numbers = leaf[None] if isinstance(leaf, Tensor) and not batched else leaf
            if id(leaf) not in without and may_be_coordinates(numbers, *size):
                warnings.warn(coordinates_stay(who, leaf), LintWarning, stacklevel=2)

    def _who(self, transform: Any) -> str:
        field = "sample" if transform is None or transform is self.sample else "batch"
        return f"Augmentation({field}={_name(self.sample if transform is None else transform)})"

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Return the batch with its input transformed, and masks with it."""
        for transform, name, keyed in self.change_batch_:
            x = input_of(batch)
            masks = self._masks(batch, x, transform, batched=True)

            def drawn(change: Callable[..., Any], x: Any, name: str = name, keyed: bool = keyed) -> Any:
                if keyed:
                    return change(x, Draws(step, self, name))
                key = step.stream(f"{self.name}/{name}").key(step.index, step.micro, step.rank)
                with keyed_globals(key >> 1, x.device if isinstance(x, Tensor) else None):
                    return change(x)

            if masks:
                moved = {id(mask): drawn(transform.on_target, mask) for mask in masks}  # type: ignore[attr-defined]
                batch = map_rest(batch, functools.partial(_given, moved))
            batch = replace(batch, input=drawn(transform, x))
        return batch


def _given(moved: dict[int, Any], leaf: Any) -> Any:
    return moved.get(id(leaf), leaf)


def _is_albumentations(transform: Any) -> bool:
    # by its method, which no other library has, so that albumentations need not be imported
    return not isinstance(transform, type) and hasattr(transform, "set_random_state")


def _name(transform: Any) -> str:
    return str(getattr(transform, "__name__", type(transform).__name__))


def _takes(field: str, transform: Any, first: str, second: str) -> bool:
    """Return whether a callable takes ``second`` besides its input; raise if it can be called neither way."""
    expected = f"must take ({first}) or ({first}, {second})"
    if not callable(transform) or isinstance(transform, type):
        raise UserError(f"Augmentation({field}={transform!r}): {expected}; give a callable")
    try:
        signature = inspect.signature(transform.forward if isinstance(transform, nn.Module) else transform)
    except ValueError:  # a function written in C without a signature
        return False
    if second in signature.parameters:
        return True
    try:
        signature.bind(None)
    except TypeError:
        raise UserError(f"Augmentation({field}={_name(transform)}): {expected}; it takes {signature}") from None
    return False
