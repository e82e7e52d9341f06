"""J over a whole part of the data, outside of the training loop."""

from __future__ import annotations

from typing import Any

import torch

from framework.data.data import Data
from framework.engine.layer_modes import put


@torch.no_grad()
def loss_over_training(objective: Any, data: Data) -> float:
    """Compute J over the training part at the evaluation weights; every rank computes the whole mean.

    In evaluation mode and without transforms, unlike ``train/loss``, which is a mean over steps with different weights.
    Called after training ended.

    Args:
        objective: the :class:`framework.engine.objective.Objective`.
        data: its data.
    """
    trainer, device = objective.trainer, objective.trainer.strategy.root_device
    modes = objective.layer_modes.present()
    objective.to(device).eval()  # Lightning moves a network off its device when training ends
    total = size = 0.0
    try:
        with objective.evaluation(), trainer.precision_plugin.val_step_context():
            for batch in data.eval_loader("train"):
                batch = objective.transfer_batch_to_device(trainer.precision_plugin.convert_input(batch), device, 0)
                outcome: Any = objective.compute_loss(batch)
                loss = getattr(outcome, "loss", outcome)  # a subclass may return J alone
                count = 0.0 if loss is None else float(objective.count(batch))
                if count:
                    total, size = total + float(loss) * count, size + count
    finally:
        objective.cpu()
        put(modes)
    return total / size
