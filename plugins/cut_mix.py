"""CutMix: boxes of one training image pasted into another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from framework.data import MixedTarget, input_of, leaves_of, map_rest, replace, rest_of, target_of
from framework.ops.dense import check_images, place_of, refused
from framework.plugin import Plugin, Step
from framework.ranges import LogRange, Range
from framework.settings import NonNegative, Probability

Box = tuple[slice, slice]


def box_of(weight: float, row: float, column: float, height: int, width: int) -> Box:
    r"""Return the rows and columns of a box that leaves about ``weight`` of an image's area, clipped at the border.

    Its sides are :math:`\lfloor H\sqrt{1 - \lambda}\rfloor` and :math:`\lfloor W\sqrt{1 - \lambda}\rfloor` before
    clipping.

    Args:
        weight: :math:`\lambda` in [0, 1].
        row: position of the centre from top (0) to bottom (1).
        column: position of the centre from left (0) to right (1).
        height: :math:`H` in pixels.
        width: :math:`W` in pixels.

    Example:
        >>> box_of(0.75, 0.5, 0.0, 8, 8)
        (slice(2, 6, None), slice(0, 2, None))
    """
    ratio = math.sqrt(1.0 - weight)

    def side(length: int, place: float) -> slice:
        cut = int(length * ratio)
        low = int(length * place) - cut // 2
        return slice(max(low, 0), min(low + cut, length))

    return side(height, row), side(width, column)


def cut_mix(x: Tensor, permutation: Tensor, box: Box) -> tuple[Tensor, float]:
    r"""Paste a box of each image's partner into it; return the images and the share of the area they keep.

    .. math:: \tilde x_i = M \odot x_i + (1 - M) \odot x_{\pi(i)}, \qquad \lambda = \operatorname{mean}(M)

    Args:
        x: ``(samples, …, height, width)``.
        permutation: :math:`\pi`, ``(samples,)``.
        box: rows and columns where the mask :math:`M` is 0.

    Example:
        >>> x, share = cut_mix(torch.tensor([[[1, 1]], [[2, 2]]]), torch.tensor([1, 0]), (slice(0, 1), slice(1, 2)))
        >>> x.tolist(), share
        ([[[1, 2]], [[2, 1]]], 0.5)
    """
    rows, columns = box
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    mixed = x.clone(memory_format=torch.contiguous_format)
    mixed[..., rows, columns] = x[..., rows, columns][permutation]
    return mixed, 1.0 - area / (x.shape[-2] * x.shape[-1])


class CutMix(Plugin):
    r"""Train on images into which a box of another image is pasted, with losses weighted by area.

    .. math::
        \tilde x_i = M \odot x_i + (1 - M) \odot x_{\pi(i)}, \qquad
        J_i = \lambda L(\hat y_i, y_i) + (1 - \lambda) L(\hat y_i, y_{\pi(i)}), \qquad
        \lambda = \operatorname{mean}(M)

    :math:`M` is 0 in a box whose area before clipping is :math:`1 - \lambda_0` of the image,
    :math:`\lambda_0 \sim \mathrm{Beta}(\alpha, \alpha)`, with its centre uniform over the image; :math:`\lambda` is the
    exact share of pixels that remain. The loss is the weighted mean of two losses (:class:`framework.MixedTarget`), so
    any loss works, and training metrics compare with the clean target :math:`y_i`.

    Masks follow the image: a tensor of the batch whose last two dimensions are the image's height and width gets the
    partner's values in the box and has no part in the mixture, so that a target which is a mask keeps its own loss. The
    other tensors of a target of several are mixed.

    There is one box per optimizer step, the same in all its micro-batches and ranks. The partners :math:`\pi` are a
    permutation within a micro-batch: under accumulation or several ranks a step has the same distribution of pairs
    except for those across micro-batches, but not the same bits.

    Args:
        alpha: :math:`\alpha` of the Beta distribution; 1 (uniform) in the source. Zero is no mixing.
        probability: probability that a step mixes; 1 for ImageNet and 0.5 for CIFAR in the source.
        target: None: masks follow the image, and targets of three and more dimensions that are no masks, such
            as boxes, are refused. ``"fixed"``: the target has no place in the image, and is mixed whatever its shape.

    Raises:
        UserError: if a setting is out of bounds, the inputs are not images, or the target cannot follow them.

    Example:
        >>> CutMix(probability=0.5).describe()
        'CutMix(probability=0.5)'

    Interacts with:
        ``Mixup`` in the same recipe gives mixtures of up to four samples, with weights multiplied: correct but strong;
        halving both probabilities is common. ``Cutout`` may cover part of a box, which the weights do not account for.
        Works best in long runs; the training loss no longer tends to zero.

    Source: Yun, Han, Oh, Chun, Choe and Yoo (2019), CutMix: Regularization strategy to train strong classifiers with
    localizable features.
    """

    alpha: Annotated[NonNegative, LogRange(0.1, 2)] = 1.0
    probability: Annotated[Probability, Range(0, 1)] = 1.0
    target: Literal["fixed"] | None = None

    examples = ({},)
    absent = ({"alpha": 0.0},)

    mixes_targets = True

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass, with the reason: partners come from the same micro-batch."""
        return dict.fromkeys(("micro", "ranks"), "partners come from the same micro-batch")

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Return the batch with a box of another image pasted into each image."""
        rng = step.stream(self.name).numpy(step.index)
        if not self.alpha or rng.random() >= self.probability:
            return batch
        x = input_of(batch)
        check_images(x, self.describe())
        weight = float(rng.beta(self.alpha, self.alpha))
        box = box_of(weight, rng.random(), rng.random(), x.shape[-2], x.shape[-1])
        partners = torch.randperm(len(x), generator=step.micro_generator(self, x.device), device=x.device)
        mixed, share = cut_mix(x, partners, box)
        if share == 1.0:  # the box holds no pixel
            return batch
        masks = self._masks(batch, x)
        pasted = {id(mask): cut_mix(mask, partners, box)[0] for mask in masks}
        if pasted:
            batch = map_rest(batch, lambda leaf: pasted.get(id(leaf), leaf))
        target = target_of(batch)
        done = {id(mask) for mask in pasted.values()}
        if done and all(id(leaf) in done for leaf in leaves_of(target) if isinstance(leaf, Tensor)):
            return replace(batch, input=mixed)
        return replace(batch, input=mixed, target=MixedTarget.of(target).mix(partners, share, self.describe(), done))

    def _masks(self, batch: Any, x: Tensor) -> list[Tensor]:
        """Return the parts of the batch that have the image's size, which get the partner's values in the box."""
        if self.target == "fixed":
            return []
        masks = []
        for leaf in rest_of(batch):
            place = place_of(leaf, x.shape[-2], x.shape[-1])
            if place == "unclear":
                raise refused(self.describe(), leaf, unclear=True)
            if place == "dense":
                masks.append(leaf)
        return masks
