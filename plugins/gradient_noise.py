"""Noise on gradients that fades during training."""

from __future__ import annotations

from typing import Annotated, cast

import torch
from torch import Tensor

from framework.errors import UserError, some
from framework.ops.shards import laid_out_as
from framework.ops.tables import padding_rows
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
    the same on every rank and whatever the number of micro-batches. Weights that do not train get none, nor do those
    that the step did not use, and the row of an embedding that ``padding_idx`` keeps from training. The noise of a
    complex weight is complex, of that variance in all.

    Args:
        eta: variance η at the first step; 0.01, 0.3 or 1 in the source. Zero is no noise.
        gamma: exponent γ of the decay; 0 is noise that does not fade.

    Raises:
        UserError: if a gradient is sparse, since noise on every row would make it dense.

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
        """Find the weights, and the rows of tables that never train."""
        self.weights_ = dict(core.model.named_parameters())
        self.rows_ = padding_rows(core.model)

    def transform_gradients(self, step: Step) -> None:
        """Add the noise."""
        if not self.eta:  # bit-identical to no noise: not even 0 is added
            return
        live = {name: w for name, w in self.weights_.items() if w.requires_grad and w.grad is not None}
        if sparse := [name for name, weight in live.items() if weight.grad.is_sparse]:  # type: ignore[union-attr]
            raise UserError(
                f"{self.describe()}: {some(sparse)} has sparse gradients, and noise falls on all rows; make the layer"
                " with sparse=False"
            )
        std = deviation(self.eta, self.gamma, step.index)
        generators: dict[torch.device, torch.Generator] = {}
        for weight in live.values():
            gradient, device = cast(Tensor, weight.grad), weight.device
            if device not in generators:
                generators[device] = step.generator(self, device)
            wide = torch.promote_types(gradient.dtype, torch.float32)
            noise = torch.randn(gradient.shape, generator=generators[device], device=device, dtype=wide)
            if (row := self.rows_.get(weight)) is not None:
                noise[row] = 0
            gradient.add_(laid_out_as(noise.to(gradient.dtype), weight), alpha=std)
