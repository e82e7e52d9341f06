"""Weight averaging over training: exponential moving average, or the mean of later weights (SWA)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from framework.errors import UserError
from framework.ops.shards import copy_into, laid_out_as, locals_of
from framework.ops.weights import Training
from framework.plugin import Finding, Host, Plan, Plugin, Step
from framework.plugin.running import estimate, norms_of, statistics_of
from framework.ranges import Choices
from framework.settings import PositiveInt, Probability


def exponential_share(updates: int, decay: float, *, warmup: bool = True) -> float:
    r"""Return the share of the new weights in an exponential moving average.

    .. math:: \bar\theta \leftarrow d_t\bar\theta + (1 - d_t)\theta, \qquad
        d_t = \min\Big(d, \frac{1 + t}{10 + t}\Big) \text{ with warm-up}, \qquad d_t = d \text{ without}

    With warm-up the decay is smaller at first, so that the average forgets the random start. Without it the average is
    that of ``torch.optim.swa_utils.get_ema_multi_avg_fn(d)``.

    Args:
        updates: number of earlier updates, t.
        decay: the decay d.
        warmup: let the decay grow.

    Example:
        >>> exponential_share(0, 0.75), exponential_share(0, 0.75, warmup=False)
        (0.9, 0.25)
    """
    return 1.0 - (min(decay, (1.0 + updates) / (10.0 + updates)) if warmup else decay)


def equal_share(updates: int) -> float:
    r"""Return the share of the new weights in the mean of all terms.

    .. math:: \bar\theta \leftarrow \bar\theta + \frac{1}{t + 1}(\theta - \bar\theta)

    Args:
        updates: number of earlier terms, t.
    """
    return 1.0 / (updates + 1)


@torch.no_grad()
def average_(averages: Sequence[Tensor], weights: Sequence[Tensor], share: float) -> None:
    """Interpolate averages in place towards the weights by a share."""
    torch._foreach_lerp_(locals_of(averages), locals_of(weights), share)


class WeightAverage(Plugin):
    r"""Evaluate with an average of the weights, while training continues with the raw ones.

    ``kind="ema"``: exponential moving average, updated every ``every`` steps, see :func:`exponential_share`.
    ``kind="swa"``: stochastic weight averaging, the mean of the weights at every ``every``-th update, see
    :func:`equal_share`; set ``start`` to the share of the run after which weights are good, and use a learning rate
    that does not decay to zero.
    ``kind="start"``: the weights between those at the start of the run, such as pretrained ones, and now (WiSE-FT):

    .. math:: \bar\theta = (1 - s)\,\theta^{(0)} + s\,\theta^{(t)}

    The network holds the average during validation, test, prediction and export, and gets the raw weights back however
    these end. A weight that is unfrozen during the run is averaged as if it had been from the start. Checkpoints hold
    the raw weights under the network's names, and the average beside them. Before the first average is taken nothing is
    swapped. Running statistics of BatchNorm do not fit averaged weights: they are computed again over ``batches``
    training batches, before transforms on the device.

    Interactions: an update counts only once it has happened, so steps that a GradScaler skips do not count.
    ``EarlyStopping`` restores the average of the best validation. Costs one copy of the weights, and a second one while
    swapped in, when there are no gradients.

    Args:
        kind: ``"ema"``, ``"swa"`` or ``"start"``.
        decay: decay of the moving average; its memory is ``1 / (1 - decay)`` updates: 0.99 for runs of a thousand
            updates, 0.999 and more for longer ones.
        start: share of the run before averaging begins; 0.75 is common for ``swa``.
        every: updates between two terms of the average.
        batches: training batches from which BatchNorm's statistics are computed.
        share: s, the share of the trained weights with ``kind="start"``; 0.5 is the source's choice without a search.
        warmup: let the decay of ``ema`` grow to its value; False for one decay throughout, as torch, Lightning and
            Composer have it, in which the first term keeps the share ``decay ** updates``.

    Example:
        >>> WeightAverage("swa", start=0.75).describe()
        "WeightAverage(kind='swa', start=0.75)"

    Source:
        Polyak and Juditsky (1992), Acceleration of stochastic approximation by averaging; Izmailov et al. (2018),
        Averaging Weights Leads to Wider Optima and Better Generalization; Tarvainen and Valpola (2017), Mean teachers
        are better role models (ema; their decay grows as 1 - 1/(t + 1)); the growing decay (1 + t)/(10 + t) is that of
        TensorFlow's ``tf.train.ExponentialMovingAverage`` with ``num_updates``; Wortsman et al. (2022), Robust
        fine-tuning of zero-shot models (start).
    """

    kind: Literal["ema", "swa", "start"] = "ema"
    decay: Annotated[Probability, Choices(0.9, 0.99, 0.999, 0.9999)] = 0.999
    start: Probability = 0.0
    every: PositiveInt = 1
    batches: PositiveInt = 32
    warmup: bool = True
    share: Probability = 0.5

    examples = (
        {"decay": 0.9},
        {"kind": "swa", "start": 0.25, "every": 2},
        {"decay": 0.9, "warmup": False},
        {"kind": "start"},
    )
    absent = (None, None, None, {"share": 1.0})

    @property
    def idle(self) -> Collection[str]:
        """Return the settings of another kind."""
        return () if self.kind == "ema" else ("decay",)

    def check(self) -> None:
        """Refuse a warm-up of a mean, which has no decay."""
        if self.kind != "ema" and not self.warmup:
            what = f"WeightAverage(kind={self.kind!r}, warmup=False)"
            raise UserError(f"{what}: {self.kind} has no decay to warm up; leave warmup out")
        if self.kind == "start" and (self.start or self.every != 1):
            raise UserError("WeightAverage(kind='start', start=, every=): has one average; leave start and every out")

    def limits(self) -> Mapping[str, str]:
        """Return the check that cannot pass, with the reason: evaluation uses the average."""
        return {"eval": "the average is evaluated"}

    @property
    def needs_until(self) -> float:
        """The share of the run after which averaging begins."""
        return self.start

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Report a start that is never reached."""
        if self.start and math.isinf(plan.epochs):
            message = f"start={self.start:g} is a share of a run that has no end; set max_epochs or max_steps"
            yield Finding("error", self.name, message)

    def attach(self, core: Host) -> None:
        """Select the trainable weights; tied ones are listed once."""
        self.all_ = dict(core.model.named_parameters())
        self.names_ = [name for name, p in self.all_.items() if p.requires_grad]
        self.weights_: list[Tensor] = [self.all_[name] for name in self.names_]
        self.training_ = Training(self.all_.values())
        self.complete_ = True
        self.averages_: list[Tensor] = []
        self.updates_ = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move the average to the weights' device, which a later phase of training may have changed."""
        self.averages_ = [average.to(w.device) for average, w in zip(self.averages_, self.weights_, strict=False)]
        if self.kind == "start" and not self.averages_:
            self.averages_ = [weight.detach().clone() for weight in self.weights_]

    def begin_step(self, step: Step) -> None:
        """Take up weights that were frozen so far; until now the mean of their values was the value itself."""
        if not self.training_.changed() and self.complete_:
            return
        self.complete_ = True
        known = set(self.names_)
        for name, weight in self.all_.items():
            if weight.requires_grad and name not in known:
                self.names_.append(name)
                self.weights_.append(weight)
                if self.averages_:
                    self.averages_.append(weight.detach().clone())

    def after_update(self, step: Step) -> None:
        """Add the current weights to the average."""
        if self.kind == "start":
            self.updates_ += 1
            return
        if step.progress < self.start or (step.index + 1) % self.every:
            return
        if not self.averages_:
            self.averages_ = [weight.detach().clone() for weight in self.weights_]
        else:
            t = self.updates_
            ema = self.kind == "ema"
            share = exponential_share(t, self.decay, warmup=self.warmup) if ema else equal_share(t)
            average_(self.averages_, self.weights_, share)
        self.updates_ += 1

    def evaluation_weights(self, core: Host) -> AbstractContextManager[None] | None:
        """Return a context in which the network holds the average, None before there is one."""
        trained = self.kind == "start" and self.share == 1.0
        return self._swapped(core) if self.averages_ and not trained else None

    @contextmanager
    def _swapped(self, core: Host) -> Iterator[None]:
        with core.edits.nested(rare=True):
            with torch.inference_mode(False), torch.no_grad():
                weights = core.edits.save(self.weights_)
                if self.kind == "start":
                    average_(weights, self.averages_, 1 - self.share)
                else:
                    copy_into(weights, self.averages_)
                with core.as_in_training():
                    if norms := norms_of(core.model):
                        core.edits.save(statistics_of(norms))
                        estimate(core, norms, self.batches, core.at.stream(self.name).key(self.updates_))
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return the average by the weights' names, and the number of its updates."""
        return {"updates": self.updates_, "averages": dict(zip(self.names_, self.averages_, strict=False))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the average."""
        self.updates_ = state_dict["updates"]
        kept = state_dict["averages"]
        if kept:
            # by name: other weights may have trained when it was written than train now
            self.names_ = [name for name in self.all_ if name in kept]
            self.weights_ = [self.all_[name] for name in self.names_]
            self.complete_ = False
        named = zip(self.names_, self.weights_, strict=True)
        self.averages_ = [laid_out_as(kept[n].to(w), w) for n, w in named] if kept else []
