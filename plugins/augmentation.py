"""Data augmentation: random changes of single samples in the loader's workers, or of batches on the device."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from framework.data import input_of, replace
from framework.errors import UserError
from framework.ops.draws import Draws
from framework.ops.transforms import RandomCrop, RandomFlip
from framework.plugin import Plugin, Step


@contextlib.contextmanager
def keyed_globals(key: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python inside the context, and restore their states after it.

    Args:
        key: a seed of 63 bits; equal keys give equal draws.
        device: an accelerator whose generator is seeded as well.

    Example:
        >>> with keyed_globals(5):
        ...     a = torch.rand(1), np.random.rand(), random.random()
        >>> with keyed_globals(5):
        ...     a == (torch.rand(1), np.random.rand(), random.random())
        True
    """
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - the state that callables share
    for generator in generators:
        generator.manual_seed(key)
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002
    random.seed(key)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def image_of(x: Any) -> Any:
    """Return an image as a new array; the channels of a tensor ``(channels, height, width)`` become last.

    Example:
        >>> image_of(torch.zeros(3, 8, 4)).shape, image_of(torch.zeros(8, 4)).shape
        ((8, 4, 3), (8, 4))
    """
    if not isinstance(x, Tensor):
        return np.array(x)
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


class _Albumentations:
    """An albumentations pipeline that draws from a keyed generator.

    All its transforms share one pair of generators. Seeding it instead (``set_random_seed``) takes many times as long
    and gives every transform the same draws, so that two flips of probability 1/2 always coincide.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._python = random.Random()
        self._rng: np.random.Generator | None = None

    def __call__(self, x: Any, rng: np.random.Generator) -> Any:
        if rng is not self._rng:  # a stream reuses one generator, which it seeds for each sample
            self._rng = rng
            self._pipeline.set_random_state(rng, self._python)
        self._python.seed(rng.random())
        image = self._pipeline(image=image_of(x))["image"]
        return tensor_of(image, x.ndim) if isinstance(x, Tensor) else image


class _Unkeyed:
    """A transform that takes no generator and so draws from the global ones, which are seeded for it."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self._transform = transform

    def __call__(self, x: Any, rng: np.random.Generator) -> Any:
        with keyed_globals(int(rng.integers(1 << 63))):
            return self._transform(x)


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

    Args:
        sample: transform of one sample, None for none; data in memory then need no loader workers.
        batch: transforms of a batch, applied in order.

    Raises:
        UserError: if a callable takes other arguments.

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
    def change_sample_(self) -> Callable[[Any, np.random.Generator], Any]:
        """The transform of one sample, adapted to take a generator."""
        assert self.sample is not None
        if _is_albumentations(self.sample):
            # a copy, since plugins or runs that share a pipeline would overwrite each other's generators
            return _Albumentations(copy.deepcopy(self.sample))
        return self.sample if _takes("sample", self.sample, "input", "rng") else _Unkeyed(self.sample)

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
        """Return the sample with its input transformed."""
        if self.sample is None:
            return sample
        x, change = input_of(sample), self.change_sample_
        if not isinstance(change, _Albumentations):  # which copies the image itself
            # a copy, since a data set in memory returns views and a transform may work in place
            x = x.clone() if isinstance(x, Tensor) else x.copy() if isinstance(x, np.ndarray) else x
        return replace(sample, input=change(x, rng))

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Return the batch with its input transformed."""
        x = input_of(batch)
        for transform, name, keyed in self.change_batch_:
            if keyed:
                x = transform(x, Draws(step, self, name))
            else:
                key = step.stream(f"{self.name}/{name}").key(step.index, step.micro, step.rank)
                with keyed_globals(key >> 1, x.device):
                    x = transform(x)
        return replace(batch, input=x) if self.batch else batch


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
