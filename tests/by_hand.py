"""A training loop by hand, which a fit with a plugin is held against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from framework import Data


def loop(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    part: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    after: Callable[[], None] = lambda: None,
    *,
    batch_size: int = 16,
) -> Tensor:
    """Train for two epochs of seed 3, and return all parameters as one vector.

    Args:
        model: the network, which does by itself what the plugin does.
        loss: the loss.
        part: inputs and targets.
        optimizer: the optimizer of the network's parameters.
        after: called after each update.
        batch_size: samples of a step.
    """
    loader = Data(part, batch_size=batch_size).train_loader(seed=3)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for window in loader:
            x, y = window.batches[0]
            optimizer.zero_grad()
            loss(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            after()
    return nn.utils.parameters_to_vector(model.parameters()).detach()
