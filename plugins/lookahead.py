"""Lookahead: slow weights that follow the optimizer's every few steps."""

from __future__ import annotations

from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from framework.ops.shards import laid_out_as, locals_of
from framework.ops.weights import Training
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange, Range
from framework.settings import Bounds, PositiveInt


def pulled(slow: list[Tensor], fast: list[Tensor], alpha: float) -> None:
    r"""Move slow weights towards the fast ones, and set those to them, in place.

    .. math:: \phi \leftarrow \phi + \alpha\,(\theta - \phi), \qquad \theta \leftarrow \phi

    Args:
        slow: :math:`\phi`.
        fast: :math:`\theta`, shaped alike.
        alpha: :math:`\alpha`.

    Example:
        >>> slow, fast = [torch.tensor([0.0])], [torch.tensor([4.0])]
        >>> pulled(slow, fast, 0.25)
        >>> slow[0].item(), fast[0].item()
        (1.0, 1.0)
    """
    torch._foreach_lerp_(slow, fast, alpha)
    torch._foreach_copy_(fast, slow)


class Lookahead(Plugin):
    r"""Let the optimizer look some steps ahead, and go a part of the way.

    .. math:: \phi \leftarrow \phi + \alpha\,(\theta - \phi), \quad \theta \leftarrow \phi \qquad \text{every } k
        \text{ steps}

    Slow weights :math:`\phi` begin where training does, and again where a later phase does. The optimizer keeps its
    state, such as momentum, from one round to the next. Averaging over rounds damps directions in which the optimizer
    oscillates, so that larger learning rates can be used. A step that is skipped, since it was not finite, does not
    count. Weights that are frozen stay as they are and need no slow weight; one that is thawed, or thawed again, begins
    a slow weight at its value then. Costs a copy of the weights that train.

    Args:
        every: k, 5 to 20.
        alpha: :math:`\alpha`, 0.5 to 0.8; 1 is the optimizer alone.

    Example:
        >>> Lookahead(every=10).describe()
        'Lookahead(every=10)'

    Interacts with: ``WeightAverage``, which averages without changing the path of training, and comes after it.
    Validation between two rounds sees the optimizer's weights: let k divide the steps of an epoch.

    Source: Zhang, Lucas, Hinton and Ba (2019), Lookahead optimizer: k steps forward, 1 step back.
    """

    every: Annotated[PositiveInt, LogRange(2, 50)] = 5
    alpha: Annotated[float, Bounds(low=0, high=1, open_low=True), Range(0.1, 1.0)] = 0.5

    examples = ({"every": 2}, {"every": 3, "alpha": 0.8})
    absent = ({"every": 10**6},)

    before = {"WeightAverage": "it averages the weights as they are after the pull"}

    def attach(self, core: Host) -> None:
        """Find the weights."""
        self.all_: dict[str, nn.Parameter] = dict(core.model.named_parameters())
        self.training_ = Training(self.all_.values())
        self.complete_ = False
        self.slow_: dict[str, Tensor] = {}
        self.done_ = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin again with a run or phase, and move what was resumed to the weights' device."""
        if not trainer.global_step:
            self.slow_, self.done_ = {}, 0
        self.slow_ = {name: slow.to(self.all_[name].device) for name, slow in self.slow_.items()}
        self.complete_ = False

    @torch.no_grad()
    def begin_step(self, step: Step) -> None:
        """Begin slow weights, before the first update of those that train; drop those that are frozen."""
        if not self.training_.changed() and self.complete_:
            return
        self.complete_ = True
        live = {name: weight for name, weight in self.all_.items() if weight.requires_grad}
        self.slow_ = {n: self.slow_[n] if n in self.slow_ else weight.detach().clone() for n, weight in live.items()}

    def after_update(self, step: Step) -> None:
        """Pull the slow weights, and go on from them."""
        self.done_ += 1
        if self.done_ % self.every:
            return
        names = [name for name in self.slow_ if self.all_[name].requires_grad]  # another plugin may have frozen one
        if names:
            slow, fast = (locals_of(held[name] for name in names) for held in (self.slow_, self.all_))
            pulled(slow, fast, self.alpha)

    def state_dict(self) -> dict[str, Any]:
        """Return the slow weights by name, and the number of updates."""
        return {"slow": dict(self.slow_), "done": self.done_}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load them."""
        self.done_ = state_dict["done"]
        kept = {name: self.all_[name] for name in state_dict["slow"] if name in self.all_}
        self.slow_ = {name: laid_out_as(state_dict["slow"][name].to(w), w) for name, w in kept.items()}
        self.complete_ = False
