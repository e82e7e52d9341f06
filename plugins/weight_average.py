"""Averages of the weights along training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from framework import Core, Plugin, Step
from framework.data import input_of
from framework.ops.shards import copy_into, laid_out_as, locals_of
from framework.plugin import Finding
from framework.plugin.plan import Plan
from framework.settings import PositiveInt, Probability


def exponential_share(updates: int, decay: float) -> float:
    r"""Return the share that the new weights get in an exponential moving average.

    .. math:: \bar\theta \leftarrow d_t\bar\theta + (1 - d_t)\theta, \qquad d_t = \min\Big(d, \frac{1 + t}{10 + t}\Big)

    Early on the decay is smaller, so that the average forgets the random start.

    Args:
        updates: averages taken before, t.
        decay: the decay d.
    """
    return 1.0 - min(decay, (1.0 + updates) / (10.0 + updates))


def equal_share(updates: int) -> float:
    r"""Return the share of the new weights in the mean of all.

    .. math:: \bar\theta \leftarrow \bar\theta + \frac{1}{t + 1}(\theta - \bar\theta)

    Args:
        updates: terms taken before, t.
    """
    return 1.0 / (updates + 1)


@torch.no_grad()
def average_(averages: Sequence[Tensor], weights: Sequence[Tensor], share: float) -> None:
    """Move averages in place by a share of the way to the weights."""
    torch._foreach_lerp_(locals_of(averages), locals_of(weights), share)


class WeightAverage(Plugin):
    r"""Evaluates an average of the weights, while training goes on with the raw ones.

    ``kind="ema"``: exponential moving average, see :func:`exponential_share`, taken every update.
    ``kind="swa"``: stochastic weight averaging, the mean of the weights at every ``every``-th update, see
    :func:`equal_share`; give ``start`` the share of the run after which weights are good, and a learning rate that does
    not fall to nothing.

    The average is in the network around validation, test, prediction and export, and is put out again on every way out;
    the raw weights are what checkpoints hold under the network's name, and the average stands beside them. Nothing is
    swapped before the first average is taken. Running statistics of BatchNorm do not belong to averaged weights: they
    are worked out anew over ``batches`` training batches, before transforms of the device.

    Interactions: the update is observed after it happened, so a step that a GradScaler skips does not count. A stop by
    ``EarlyStopping`` keeps the average of the best validation. It costs one copy of the weights, a second while swapped
    in, when there are no gradients.

    Args:
        kind: which average.
        decay: decay of the moving average; its memory is ``1 / (1 - decay)`` updates: 0.99 for runs of a thousand
            updates, 0.999 and more for longer ones.
        start: share of the run before averaging begins; 0.75 is common for ``swa``.
        every: updates between two terms of the average.
        batches: training batches by which BatchNorm's statistics are worked out anew.

    Example:
        >>> WeightAverage("swa", start=0.75).describe()
        "WeightAverage(kind='swa', start=0.75)"

    Source:
        Polyak and Juditsky (1992); Izmailov et al. (2018), Averaging Weights Leads to Wider Optima and Better
        Generalization; the growing decay as in Tarvainen and Valpola (2017), Mean teachers.
    """

    kind: Literal["ema", "swa"] = "ema"
    decay: Probability = 0.999
    start: Probability = 0.0
    every: PositiveInt = 1
    batches: PositiveInt = 32

    examples = ({"decay": 0.9}, {"kind": "swa", "start": 0.25, "every": 2})

    def limits(self) -> Mapping[str, str]:
        """Tell what an average of the weights is there for."""
        return {"eval": "the average is evaluated"}

    @property
    def needs_until(self) -> float:
        """Where averaging begins."""
        return self.start

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Tell a start that never comes."""
        if self.start and math.isinf(plan.epochs):
            message = f"start={self.start:g} is a share of a run that has no end; set max_epochs or max_steps"
            yield Finding("error", self.name, message)

    def attach(self, core: Core) -> None:
        """Find the weights, each once though it be tied."""
        self.names_ = [name for name, p in core.model.named_parameters() if p.requires_grad]
        self.weights_ = [p for p in core.model.parameters() if p.requires_grad]
        self.averages_: list[Tensor] = []
        self.updates_ = 0

    def after_update(self, step: Step) -> None:
        """Take one more term."""
        if step.progress < self.start or (step.index + 1) % self.every:
            return
        if not self.averages_:
            self.averages_ = [weight.detach().clone() for weight in self.weights_]
        else:
            t = self.updates_
            share = exponential_share(t, self.decay) if self.kind == "ema" else equal_share(t)
            average_(self.averages_, self.weights_, share)
        self.updates_ += 1

    def evaluation_weights(self, core: Core) -> AbstractContextManager[None] | None:
        """Return a context in which the network holds the average."""
        return self._swapped(core) if self.averages_ else None

    @contextmanager
    def _swapped(self, core: Core) -> Iterator[None]:
        norms = [
            m for m in core.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
        ]
        statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        with core.edits.nested(rare=True):
            with torch.inference_mode(False), torch.no_grad():
                copy_into(core.edits.save(self.weights_), self.averages_)
                if norms:
                    core.edits.save(statistics)
                    self._estimate(core, norms)
            yield

    def _estimate(self, core: Core, norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> None:
        """Work running statistics out anew: the mean over training batches, the same batches on every rank."""
        training, momenta = core.model.training, [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for a plain mean
        core.model.train()
        devices = [core.device] if core.device.type == "cuda" else []
        try:
            # dropout draws here too: the same for the same average, and none of anybody else's draws
            with torch.random.fork_rng(devices):
                torch.manual_seed(core.at.stream(self.name).key(self.updates_) >> 1)
                for batch in core.training_batches(self.batches):
                    core(input_of(batch))
        finally:
            core.model.train(training)
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    def state_dict(self) -> dict[str, Any]:
        """Return the average by the weights' names, and how many terms it has."""
        return {"updates": self.updates_, "averages": dict(zip(self.names_, self.averages_, strict=False))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the average."""
        self.updates_ = state_dict["updates"]
        kept, named = state_dict["averages"], zip(self.names_, self.weights_, strict=True)
        self.averages_ = [laid_out_as(kept[n].to(w), w) for n, w in named] if kept else []
