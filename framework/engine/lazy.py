"""Give lazy layers their shapes, by one forward pass before anything else needs them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from framework.data.data import Data
from framework.engine.layer_modes import LayerModes, put
from framework.errors import UserError, one_line


def materialize(objective: Any, data: Data | None, model: nn.Module) -> None:
    """Evaluate the network on one training batch if it has lazy layers; modes and buffers of others stay as they are.

    Args:
        objective: the :class:`framework.engine.objective.Objective`, whose ``compute_loss`` calls the network.
        data: its data.
        model: the network, which may be changed in place.

    Raises:
        UserError: if the pass fails.
    """
    if not any(is_lazy(one) for one in (*model.parameters(), *model.buffers())):
        return
    modes = LayerModes(model).present()
    model.eval()
    try:
        with torch.no_grad():
            if data is None or data.samples("train") is None:
                raise UserError("the data have no samples to call it on")
            objective.compute_loss(next(iter(data.eval_loader("train"))))
    except Exception as error:  # the network's own code may fail in any way
        raise UserError(
            f"{type(model).__name__} has lazy layers, whose shapes one batch did not give ({one_line(error)}); call the"
            " network once on a batch before Recipe(model=...), or write the layers' sizes"
        ) from error
    finally:
        put(modes)
