"""Noise on the network's inputs."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Annotated, Any

from torch import Tensor

from framework.data import input_of, map_leaves, replace
from framework.errors import UserError
from framework.ops.draws import NoiseKind, Rate, check_rate, disturbed
from framework.plugin import Plugin, Step
from framework.ranges import LogRange, Range
from framework.settings import NonNegative


class InputNoise(Plugin):
    r"""Add noise to the inputs of training samples.

    .. math::
        \tilde x = x + \sigma\varepsilon \quad\text{(gaussian)}, \qquad
        \tilde x = x (1 + \sigma\varepsilon) \quad\text{(multiplicative)}, \qquad
        \tilde x = x \odot m,\; P(m_i = 0) = p \quad\text{(masking)}

    with :math:`\varepsilon \sim \mathcal N(0, I)` drawn independently for each sample, each of its
    inputs, and step. To a squared error
    :math:`\tfrac12(\hat y - y)^2` small gaussian noise adds
    :math:`\tfrac{\sigma^2}{2}\,\mathbb E\lVert\nabla_x \hat y\rVert^2` in expectation; for a linear model that is
    the ridge penalty :math:`\tfrac{\sigma^2}{2}\lVert w\rVert^2`, exactly and for noise of any size. Masking does not
    rescale the entries it keeps, as is the convention for denoising autoencoders; for that of dropout see
    ``HiddenNoise``.

    Args:
        std: :math:`\sigma`; in units of the inputs (gaussian: 0.05 to 0.3 on standardized inputs) or as a share of each
            entry (multiplicative). Ignored by masking. Zero is no noise.
        kind: ``"gaussian"``, ``"multiplicative"`` or ``"masking"``.
        rate: :math:`p` in [0, 1), for masking only; 0.1 to 0.5 are usual. Zero is no noise.

    Raises:
        UserError: if the strength does not belong to the kind, or the inputs are not floating-point numbers.

    Example:
        >>> InputNoise(0.2).describe()
        'InputNoise(std=0.2)'
        >>> InputNoise(kind="masking", rate=0.25).describe()
        "InputNoise(kind='masking', rate=0.25)"

    Interacts with:
        Batch augmentation: the order in the recipe decides whether noise is mixed (before ``Mixup``) or added to
        mixtures (after). Standardize inputs first, since :math:`\sigma` is the same for all of them.

    Source: Bishop (1995), Training with noise is equivalent to Tikhonov regularization; Vincent, Larochelle, Bengio and
    Manzagol (2008), Extracting and composing robust features with denoising autoencoders; Goodfellow, Bengio and
    Courville (2016), Deep Learning, section 7.5.
    """

    std: Annotated[NonNegative, LogRange(0.01, 1)] = 0.1
    kind: NoiseKind = "gaussian"
    rate: Annotated[Rate, Range(0, 0.8)] | None = None

    examples = ({"std": 0.3}, {"std": 0.5, "kind": "multiplicative"}, {"kind": "masking", "rate": 0.3})
    absent = ({"std": 0.0}, {"std": 0.0}, {"rate": 0.0})

    @property
    def idle(self) -> Collection[str]:
        """Return the settings of another kind."""
        return ("std",) if self.kind == "masking" else ()

    @property
    def proportional(self) -> Collection[str]:
        """Return the strength, to which what is added is proportional."""
        return () if self.kind == "masking" else ("std",)

    def check(self) -> None:
        """Check that masking has a rate, and that no other kind has one."""
        check_rate("InputNoise", self.kind, self.rate)

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Return the batch with noise added to its input."""
        inputs = input_of(batch)
        if isinstance(inputs, Tensor):
            noisy = self._noisy(inputs, step, "")
        else:  # several inputs, whose noise is keyed by their positions
            count = itertools.count()
            noisy = map_leaves(inputs, lambda x: self._noisy(x, step, f"input {next(count)}"))
        return batch if noisy is inputs else replace(batch, input=noisy)

    def _noisy(self, x: Any, step: Step, who: str) -> Tensor:
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            raise UserError(
                f"{self.describe()}: needs inputs of floating-point numbers, received"
                f" {x.dtype if isinstance(x, Tensor) else type(x).__name__}; convert them, or for token ids use"
                " HiddenNoise at the embedding, or override transform_batch in a subclass to change some of"
                " several inputs"
            )
        return disturbed(x, self.kind, self.std, self.rate, plugin=self, step=step, who=who)
