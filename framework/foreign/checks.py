"""Which LightningModules can be trained with plugins, and which cannot, with the reason."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from framework.data.modules import overridden
from framework.errors import UserError
from framework.plugin.plugin import Plugin

_MIXES = "mixes targets, which only the module's own training_step reads"


def lightning_base(module: Any) -> type | None:
    """Return the class ``LightningModule`` that a module derives from, of either of Lightning's packages.

    ``pytorch_lightning`` and ``lightning.pytorch`` define two different classes; None if the module derives from
    neither.
    """
    for base in type(module).__mro__:
        home = base.__module__.partition(".")[0]
        if base.__name__ == "LightningModule" and home in ("pytorch_lightning", "lightning"):
            return base
    return None


def check_module(module: Any, plugins: Sequence[Plugin], compile: object) -> None:
    """Check that a LightningModule can be trained here, alone and beside these plugins.

    Args:
        module: the module.
        plugins: the recipe's plugins.
        compile: the recipe's ``compile``.

    Raises:
        UserError: if it cannot; the message says why and what to do.
    """
    name, step = type(module).__name__, getattr(module, "training_step", check_module)
    if lightning_base(module) is None or not isinstance(module, nn.Module):
        raise UserError(
            f"Recipe(module=...): must be a LightningModule; received {name}; a network is Recipe(model=...)"
        )
    if not overridden(module, "training_step"):
        raise UserError(f"{name} has no training_step; a network without one is Recipe(model=..., loss=...)")
    if not module.automatic_optimization:
        raise UserError(
            f"{name} sets automatic_optimization=False: it steps its optimizers itself, so no plugin could act on a"
            " step; train it with Lightning's Trainer"
        )
    parameters = inspect.signature(step).parameters
    if "dataloader_iter" in parameters:
        raise UserError(
            f"{name}.training_step(dataloader_iter) takes batches itself, so no plugin could act on them; write"
            " training_step(batch, batch_idx)"
        )
    if getattr(module, "truncated_bptt_steps", 0) or "hiddens" in parameters:
        raise UserError(
            f"{name}: truncated_bptt_steps and training_step(batch, batch_idx, hiddens): Lightning 2 no longer calls"
            " it; split the sequence in training_step"
        )
    if "optimizer_idx" in parameters:
        raise UserError(
            f"{name}.training_step(batch, batch_idx, optimizer_idx): a step here moves one optimizer; merge them into"
            " parameter groups of one"
        )
    if compile:
        raise UserError(
            f"Recipe(compile=...): {name} calls its networks itself; compile them there: self.net = torch.compile(net)"
        )
    for plugin in plugins:
        if plugin.mixes_targets:
            raise UserError(f"{plugin.name}: {_MIXES}; leave it out, or give Recipe(model=..., loss=...)")
