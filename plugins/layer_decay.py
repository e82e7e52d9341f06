"""Layer-wise learning rate decay: lower learning rates the deeper below the head."""

from __future__ import annotations

from typing import Annotated, Any

from framework.errors import UserError
from framework.ops.depth import blocks_of
from framework.ops.patterns import Patterns, select_parameters
from framework.plugin import Host, Plugin
from framework.ranges import Range
from framework.settings import Probability


class LayerDecay(Plugin):
    r"""Multiply learning rates by a factor for each block below the head, since lower layers need to change less.

    .. math:: \eta_k = \eta\, \gamma^{K - k}, \qquad k = 1, \dots, K

    with K blocks from the stem to the head, and η the rate of the ``Optimizer``, or of its groups.

    Args:
        decay: γ; 0.65 to 0.9 for transformers of 12 layers and more, 0.95 (the source's 1/1.05) for small networks.
        blocks: patterns over parameters or layers, from the stem to the head; parameters of no block have the rate of
            the first. None for the network's own, see :func:`framework.ops.depth.blocks_of`.

    Raises:
        UserError: if it stands before the plugin that sets learning rates, or a pattern matches no parameter.

    Example:
        >>> LayerDecay(0.8).describe()
        'LayerDecay(decay=0.8)'

    Interacts with: ``Optimizer``, after which it stands, and whose ``groups`` multiply too; ``Schedule``, which varies
    all rates by one factor.

    Source: Howard and Ruder (2018), Universal language model fine-tuning for text classification (discriminative
    fine-tuning); Clark et al. (2020), ELECTRA (layer-wise decay).
    """

    decay: Annotated[Probability, Range(0.5, 1)]
    blocks: list[Patterns] | None = None

    after = {"Optimizer": "it sets the learning rates that are scaled here"}

    examples = ({"decay": 0.5, "with": {"optimizer": {"cls": "SGD", "lr": 0.1}}},)
    absent = ({"decay": 1.0},)

    def attach(self, core: Host) -> None:
        """Find the factor of each parameter."""
        named = dict(core.model.named_parameters())
        if self.blocks is None:
            blocks = [{name: named[name] for name in block} for block in blocks_of(core.model)]
        else:
            who = f"LayerDecay(blocks={self.blocks!r})"
            blocks = [select_parameters(core.model, one, who=who) for one in self.blocks]
        depth = {id(p): place for place, block in enumerate(blocks) for p in block.values()}
        top = len(blocks) - 1
        self.factors_ = {id(p): self.decay ** (top - depth.get(id(p), 0)) for p in named.values()}

    def group_parameters(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Split the groups by depth."""
        split: list[dict[str, Any]] = []
        for group in groups:
            if "lr" not in group:
                raise UserError(
                    f"{self.name}: no learning rate to scale; put it after Optimizer(lr=...) in the recipe's plugins"
                )
            parts: dict[float, dict[str, Any]] = {}
            for name, parameter in group["params"]:
                factor = self.factors_[id(parameter)]
                part = parts.setdefault(factor, {**group, "params": [], "lr": group["lr"] * factor})
                part["params"].append((name, parameter))
            split.extend(parts.values())
        return split
