"""Noise on the outputs of hidden layers, including dropout."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from torch import Tensor

from framework.ops.draws import NoiseKind, Rate, check_rate, disturbed
from framework.ops.patterns import Patterns
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange, Range
from framework.settings import NonNegative


class HiddenNoise(Plugin):
    r"""Add noise to the outputs of chosen layers during training.

    .. math::
        \tilde h = h + \sigma\varepsilon \quad\text{(gaussian)}, \qquad
        \tilde h = h (1 + \sigma\varepsilon) \quad\text{(multiplicative)}, \qquad
        \tilde h = \frac{h \odot m}{1 - p},\; P(m_i = 0) = p \quad\text{(masking)}

    Each kind preserves the mean, since evaluation uses :math:`h` itself: masking is dropout. Multiplicative noise with
    :math:`\sigma = \sqrt{p / (1 - p)}` (:func:`framework.ops.noise.dropout_std`) has the mean and variance of dropout
    of rate :math:`p`.

    Draws are keyed by layer, step and sample. A layer that is called several times in one forward gets the same noise
    at every call with the same shape, which suits a recurrent cell (one mask per sequence); use a module per call for
    independent draws. Of a layer that returns a tuple (``nn.LSTM``) the output sequence gets the noise, not the state.
    If the output's first dimension does not run over samples (recurrent layers without ``batch_first``, packed
    sequences), draws are keyed by micro-batch and depend on how a step is cut.

    Args:
        layers: patterns over names or class names of layers, such as ``"ReLU"`` or ``"encoder.*"``.
        std: :math:`\sigma`; in units of the activations (gaussian: 0.1 to 0.5 after a norm layer) or as a share of each
            (multiplicative: 0.3 to 1). Ignored by masking. Zero is no noise.
        kind: ``"gaussian"``, ``"multiplicative"`` or ``"masking"``.
        rate: :math:`p` in [0, 1), for masking only; 0.1 to 0.5 are usual. Zero is no noise.

    Raises:
        UserError: if the strength does not belong to the kind, or a pattern matches no layer.

    Example:
        >>> HiddenNoise("ReLU", std=0.3, kind="multiplicative").describe()
        "HiddenNoise(layers='ReLU', std=0.3, kind='multiplicative')"

    Interacts with:
        ``ActivationSparsity`` at the same layer sees the noise if it comes later in the recipe.
        Larger weights can make gaussian noise before ReLU negligible; combine it with a norm layer or a norm penalty.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), Dropout, section 10 (multiplicative);
    Poole, Sohl-Dickstein and Ganguli (2014), Analyzing noise in autoencoders and deep networks; Goodfellow, Bengio and
    Courville (2016), Deep Learning, sections 7.5 and 7.12; Gal and Ghahramani (2016), A theoretically grounded
    application of dropout in recurrent neural networks (one mask per sequence).
    """

    layers: Patterns
    std: Annotated[NonNegative, LogRange(0.01, 1)] = 0.1
    kind: NoiseKind = "gaussian"
    rate: Annotated[Rate, Range(0, 0.8)] | None = None

    examples = (
        {"layers": "ReLU", "std": 0.3},
        {"layers": "Sigmoid", "std": 0.5, "kind": "multiplicative"},
        {"layers": ["Embedding", "LSTM"], "kind": "masking", "rate": 0.3, "in": "tokens"},
    )
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
        check_rate("HiddenNoise", self.kind, self.rate)

    def attach(self, core: Host) -> None:
        """Select the layers."""
        core.observe(self, self.layers)

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        """Return the layer's output with noise added."""
        std, rate = (None, step.number(self, "rate")) if self.kind == "masking" else (step.number(self, "std"), None)
        return disturbed(x, self.kind, std, rate, plugin=self, step=step, who=layer, rescale=True)
