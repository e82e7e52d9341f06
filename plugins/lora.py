"""LoRA: fine-tune by low-rank changes of chosen layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import nn

from framework.errors import UserError, some
from framework.ops.patterns import Patterns, select_layers, select_parameters
from framework.plugin import Host, Plugin
from framework.ranges import Choices
from framework.settings import PositiveInt, Probability


class LoRA(Plugin):
    r"""Freeze the network, and learn a low-rank change of each chosen layer beside its weight.

    .. math:: W' = W + \frac{\alpha}{r} B A, \qquad A \in \mathbb R^{r \times n},\ B \in \mathbb R^{m \times r}

    with A drawn at random and B = 0 at the start, so that the network begins as it was. The layers are those of the
    package PEFT. Checkpoints hold the whole network, the changes beside the weights; ``export`` adds the changes to the
    weights, whose names are then those of the network itself, or with ``merge=False`` keeps them apart.

    Args:
        layers: patterns over layers to adapt, by name or class name, such as ``"*.query,*.value"`` or ``"Linear"``;
            linear layers, convolutions and embeddings are possible.
        rank: r; 4 to 16 are usual.
        alpha: α; the rank itself, or twice as much.
        dropout: probability of dropping an input of A in training.
        train: patterns of parameters that train whole, such as those of a new head; pass its layers by in ``layers``.
        merge: let ``export`` write the network with the changes added to its weights.

    Raises:
        UserError: if PEFT is not installed, a pattern matches nothing, or PEFT cannot adapt a layer.

    Example:
        >>> LoRA("*.query,*.value", train="classifier.*").describe()
        "LoRA(layers='*.query,*.value', train='classifier.*')"

    Interacts with: penalties and noise on weights, whose patterns find what is trained, the factors A and B; ``Freeze``
    and ``Unfreeze`` are not needed.

    Source: Hu et al. (2022), LoRA: Low-rank adaptation of large language models.
    """

    layers: Patterns
    rank: Annotated[PositiveInt, Choices(2, 4, 8, 16)] = 8
    alpha: PositiveInt = 16
    dropout: Probability = 0.0
    train: Patterns = ()
    merge: bool = True

    conflicts = {
        "Freeze": "LoRA freezes what it adapts, and train= says what else trains",
        "Unfreeze": "LoRA freezes what it adapts, and train= says what else trains",
    }

    examples = ({"layers": "conv", "rank": 2, "train": "head"},)

    def limits(self) -> Mapping[str, str]:
        """Return the check that cannot pass, with the reason."""
        return {"eval": "the bare network has no place for the changes; export adds them to its weights"}

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Put the adapted layers in place of the chosen ones, and freeze all else."""
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise UserError(
                f"{self.describe()}: needs the package peft; install the extra lora: pip install 'jtilde[lora]'"
            ) from error
        names = list(select_layers(model, self.layers, who=f"LoRA(layers={self.layers!r})"))
        places: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            places.setdefault(id(parameter), []).append(name)
        for name in names:
            own = [places[id(one)] for one in model.get_submodule(name).parameters(recurse=False)]
            if tied := next((found for found in own if len(found) > 1), None):
                raise UserError(
                    f"{self.describe()}: {' and '.join(tied)} are one tied parameter, to which export could not add the"
                    " change of one layer; leave these layers out"
                )
        whole = {}
        if self.train:
            whole = select_parameters(model, self.train, who=f"LoRA(train={self.train!r})")
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules="|".join(re.escape(name) for name in names),
        )
        training = {layer: layer.training for layer in model.modules()}
        try:
            inject_adapter_in_model(config, model)
        except Exception as error:  # it makes layers of the chosen layers' classes, whose constructors may want more
            reason = str(error) or type(error).__name__
            raise UserError(f"{self.describe()}: PEFT cannot adapt one of {some(names)}: {reason}") from error
        for layer in model.modules():  # PEFT's own are made in training mode
            layer.training = training.get(layer, layer.training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        for parameter in whole.values():
            parameter.requires_grad_(True)
        return model

    def attach(self, core: Host) -> None:
        """Find the adapted layers."""
        self.names_ = [name for name, layer in core.model.named_modules() if hasattr(layer, "lora_A")]

    def export_model(self, model: nn.Module) -> nn.Module:
        """Return a copy of the network with the changes added to its weights."""
        if not self.merge:
            return model
        merged = copy.deepcopy(model)
        for name in self.names_:
            layer: Any = merged.get_submodule(name)
            with torch.no_grad():
                layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(merged.get_submodule(parent), last, layer.base_layer)
        return merged
