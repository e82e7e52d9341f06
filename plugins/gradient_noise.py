"""Noise on gradients that fades during training."""

from __future__ import annotations

from typing import Annotated

import torch

from framework.ops.shards import laid_out_as
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange
from framework.settings import NonNegative


def deviation(eta: float, gamma: float, step: int) -> float:
    r"""Return the standard deviation at a step, :math:`\sigma_t = \sqrt{\eta / (1 + t)^\gamma}`.

    Args:
        eta: variance η at the first step.
        gamma: exponent γ.
        step: number t of the step, from 0.

    Example:
        >>> deviation(0.04, 1.0, 0), deviation(0.04, 1.0, 3)
        (0.2, 0.1)
    """
    return float((eta / (1 + step) ** gamma) ** 0.5)


class GradientNoise(Plugin):
    r"""Add Gaussian noise to the gradient of each weight, less from step to step.

    .. math:: g_t \leftarrow g_t + \mathcal N(0, \sigma_t^2), \qquad \sigma_t^2 = \frac{\eta}{(1 + t)^\gamma}

    Noise early in training helps to leave bad starting regions of deep networks. There is one draw per optimizer step,
    the same on every rank and whatever the number of micro-batches. Weights that do not train get none.

    Args:
        eta: variance η at the first step; 0.01, 0.3 or 1 in the source. Zero is no noise.
        gamma: exponent γ of the decay.

    Example:
        >>> GradientNoise(0.01).describe()
        'GradientNoise(eta=0.01)'

    Interacts with: clipping, which comes after it; adaptive optimizers, which scale the noise as they scale gradients:
    where those are tiny, the noise decides.

    Source: Neelakantan et al. (2015), Adding gradient noise improves learning for very deep networks.
    """

    eta: Annotated[NonNegative, LogRange(1e-6, 1.0)]
    gamma: NonNegative = 0.55

    examples = ({"eta": 0.01},)
    absent = ({"eta": 0.0},)

    def attach(self, core: Host) -> None:
        """Keep the network."""
        self.model_ = core.model

    def transform_gradients(self, step: Step) -> None:
        """Add the noise."""
        if not self.eta:
            return
        std = deviation(self.eta, self.gamma, step.index)
        generators: dict[torch.device, torch.Generator] = {}
        for weight in self.model_.parameters():
            gradient = weight.grad
            if gradient is None or not weight.requires_grad:
                continue
            if weight.device not in generators:
                generators[weight.device] = step.generator(self, weight.device)
            wide = torch.promote_types(gradient.dtype.to_real(), torch.float32)
            generator, device = generators[weight.device], weight.device
            noise = torch.randn(gradient.shape, generator=generator, device=device, dtype=wide)
            gradient.add_(laid_out_as(noise.to(gradient.dtype), weight), alpha=std)
