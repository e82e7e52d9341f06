"""Give lazy layers their shapes, by one forward pass before anything else needs them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from framework.errors import UserError, one_line
from framework.plugin.host import Host


def materialize(objective: Host, model: nn.Module) -> None:
    """Evaluate the network on one training batch if it has lazy layers; modes and buffers of others stay as they are.

    Args:
        objective: the objective, whose ``compute_loss`` tells how the network is called.
        model: the network, which may be changed in place.

    Raises:
        UserError: if the pass fails.
    """
    if not any(is_lazy(one) for one in (*model.parameters(), *model.buffers())):
        return
    modes = [(layer, layer.training) for layer in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            data = objective.data
            if data is None or data.samples("train") is None:
                raise UserError("the data have no samples to call it on")
            objective.compute_loss(next(iter(data.eval_loader("train"))))
    except Exception as error:  # the network's own code may fail in any way
        raise UserError(
            f"{type(model).__name__} has lazy layers, whose shapes one batch did not give ({one_line(error)}); call the"
            " network once on a batch before Recipe(model=...), or write the layers' sizes"
        ) from error
    finally:
        for layer, mode in modes:
            layer.training = mode
