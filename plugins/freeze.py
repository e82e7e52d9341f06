"""Freeze: keep parameters, such as those of a pretrained backbone, as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytorch_lightning as pl

from framework.ops.freezing import set_trainable
from framework.ops.patterns import Patterns, select_parameters
from framework.plugin import Host, Plugin


class Freeze(Plugin):
    r"""Keep some parameters of the network as they are, commonly all but the head of a pretrained one.

    .. math:: \theta_F^{(t)} = \theta_F^{(0)} \quad \text{for all steps } t

    A frozen parameter gets no gradient, no weight decay and no noise, and costs no memory of the optimizer. A
    normalization layer all of whose parameters are frozen normalizes by the running statistics that it has, in training
    too, and keeps them.

    Args:
        weights: patterns over parameters or layers to freeze, by name or class name, such as ``"backbone.*"``; biases
            and norm gains among them.
        train: patterns of parameters to leave out, such as ``"*.head.*"`` beside ``weights="*"``.
        statistics: let frozen normalization layers normalize by their batches in training, and follow their
            statistics.

    Raises:
        UserError: if a pattern matches no parameter, or nothing is left to train.

    Example:
        >>> Freeze("*", train="head.*").describe()
        "Freeze(weights='*', train='head.*')"

    Interacts with: plugins that select weights, whose patterns then find the trainable ones alone; ``Unfreeze``, which
    freezes and thaws by itself; ``LoRA``, which freezes what it adapts.

    Source: Yosinski et al. (2014), How transferable are features in deep neural networks?
    """

    weights: Patterns
    train: Patterns = ()
    statistics: bool = False

    conflicts = {"Unfreeze": "it says itself what is frozen, and when no longer"}

    examples = ({"weights": "*", "train": "head"}, {"weights": "conv,norm"})

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass, with the reason."""
        reason = "frozen normalization layers keep their statistics, in evaluation mode"
        return {} if self.statistics else dict.fromkeys(("norms", "modes"), reason)

    def attach(self, core: Host) -> None:
        """Freeze the parameters."""
        chosen = select_parameters(core.model, self.weights, who=f"Freeze(weights={self.weights!r})")
        if self.train:
            left = select_parameters(core.model, self.train, who=f"Freeze(train={self.train!r})")
            chosen = {name: parameter for name, parameter in chosen.items() if name not in left}
        already = {parameter for parameter in core.model.parameters() if not parameter.requires_grad}
        set_trainable(core.model, already | set(chosen.values()), statistics=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let frozen normalization layers keep their statistics; Lightning warns of modes that are set before."""
        network = cast("Host", pl_module).model
        set_trainable(network, {p for p in network.parameters() if not p.requires_grad}, statistics=self.statistics)
