"""Mixup: convex combinations of pairs of training samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from framework.data import MixedTarget, input_of, leaves_of, map_leaves, replace, target_of
from framework.errors import UserError
from framework.plugin import Plugin, Step
from framework.ranges import LogRange
from framework.settings import NonNegative, Probability


def mixup(x: Tensor, permutation: Tensor, weight: float) -> Tensor:
    r"""Mix each sample with a partner: :math:`\lambda x_i + (1 - \lambda)\,x_{\pi(i)}`.

    Args:
        x: floating-point tensor ``(samples, …)``.
        permutation: :math:`\pi`, ``(samples,)``.
        weight: :math:`\lambda` in [0, 1].

    Example:
        >>> mixup(torch.tensor([[0.0], [4.0]]), torch.tensor([1, 0]), 0.75).tolist()
        [[1.0], [3.0]]
    """
    return x.index_select(0, permutation).lerp_(x, weight)


class Mixup(Plugin):
    r"""Train on convex combinations of pairs of samples and of their losses.

    .. math::
        \tilde x_i = \lambda x_i + (1 - \lambda)\,x_{\pi(i)}, \qquad
        J_i = \lambda L(\hat y_i, y_i) + (1 - \lambda) L(\hat y_i, y_{\pi(i)}), \qquad
        \lambda = \max(\lambda', 1 - \lambda'), \quad \lambda' \sim \mathrm{Beta}(\alpha, \alpha)

    The partners are a random permutation, so giving :math:`x_i` the larger share does not change the distribution of
    pairs; the clean target is then the one with the larger weight, and training metrics stay meaningful.

    The loss is the weighted mean of two losses (:class:`framework.MixedTarget`): for losses linear in the target, such
    as cross-entropy, that is the loss of the mixed target, and it works for any other. Training metrics compare
    with the clean target :math:`y_i`.

    There is one :math:`\lambda` per optimizer step, the same in all its micro-batches and ranks. The partners
    :math:`\pi` are a permutation within a micro-batch: under accumulation or several ranks a step has the same
    distribution of pairs except for those across micro-batches, but not the same bits. The only sample of a micro-batch
    is its own partner. Several inputs or targets of a sample (tuples, mappings, dataclasses) are mixed alike, each.

    Args:
        alpha: :math:`\alpha` of the Beta distribution; 0.1 to 0.4 for image classification, 1 (uniform) for small
            images and long runs. Zero is no mixing.
        probability: probability that a step mixes.

    Raises:
        UserError: if a setting is out of bounds, or the inputs are not floating-point numbers.

    Example:
        >>> Mixup(0.4).describe()
        'Mixup(alpha=0.4)'

    Interacts with:
        ``CutMix`` in the same recipe pastes boxes of mixtures, up to four samples in one, with weights multiplied:
        correct but strong; halving both probabilities is common. Weight decay can be lower, and the training loss no
        longer tends to zero, so compare validation losses. Batch normalization sees mixtures.

    Source: Zhang, Cisse, Dauphin and Lopez-Paz (2018), mixup: Beyond empirical risk minimization.
    """

    alpha: Annotated[NonNegative, LogRange(0.05, 2)] = 0.2
    probability: Probability = 1.0

    examples = ({"alpha": 1.0},)
    absent = ({"alpha": 0.0},)

    mixes_targets = True

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass, with the reason: partners come from the same micro-batch."""
        return dict.fromkeys(("micro", "ranks"), "partners come from the same micro-batch")

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Return the batch mixed with a permutation of itself."""
        rng = step.stream(self.name).numpy(step.index)
        if not self.alpha or rng.random() >= self.probability:
            return batch
        inputs = input_of(batch)
        # several inputs of a sample are mixed alike
        for x in [inputs] if isinstance(inputs, Tensor) else leaves_of(inputs):
            if isinstance(x, Tensor) and x.is_floating_point():
                continue
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise UserError(
                f"{self.describe()}: needs inputs of floating-point numbers, received {kind};"
                " convert them, or override transform_batch in a subclass to mix some of them"
            )
        weight = float(rng.beta(self.alpha, self.alpha))
        weight = max(weight, 1.0 - weight)
        partners = torch.randperm(len(x), generator=step.micro_generator(self, x.device), device=x.device)
        changed = map_leaves(inputs, lambda x: mixup(x, partners, weight))
        target = MixedTarget.of(target_of(batch)).mix(partners, weight, self.describe())
        return replace(batch, input=changed, target=target)
