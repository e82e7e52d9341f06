"""Early stopping: end where validation stops improving, hand back the best weights, then use all the data."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch

from framework import Core
from framework.errors import UserError, did_you_mean
from framework.ops.snapshot import Snapshot
from framework.plugin import Finding, Phase, Plugin
from framework.plugin.plan import Plan
from framework.settings import NonNegative, PositiveInt


def equivalent_decay(steps: int, lr: float) -> float:
    r"""Return the strength of L2 regularization to which stopping after so many steps comes close.

    Gradient descent from the origin on a quadratic with Hessian eigenvalues :math:`\lambda_i` reaches after
    :math:`\tau` steps of size :math:`\epsilon` the share :math:`1 - (1 - \epsilon\lambda_i)^\tau` of the way to the
    minimum, L2 of strength :math:`\alpha` the share :math:`\lambda_i / (\lambda_i + \alpha)`. To first order in
    :math:`\tau\epsilon\lambda_i` they are equal for

    .. math:: \alpha = \frac{1}{\tau\epsilon}

    Example:
        >>> equivalent_decay(steps=100, lr=0.1)
        0.1

    Source: Goodfellow, Bengio and Courville (2016), Deep Learning, equation 7.45.
    """
    return 1 / (steps * lr)


class Best(NamedTuple):
    """When validation was best, and what it gave.

    Args:
        epoch: the epoch, from 0.
        step: optimizer steps done by then.
        metrics: metrics by tag.
    """

    epoch: int
    step: int
    metrics: dict[str, float]


class EarlyStopping(Plugin):
    r"""Ends training when validation stops improving, and hands back the parameters of the best validation.

    .. math:: i^* = \arg\min_i J(\theta_i; X^{(\mathrm{val})}, y^{(\mathrm{val})}), \qquad
              \text{stop at the first } i \text{ with } \mathit{patience} \text{ validations since } i^*

    The best parameters and buffers come back on every way out: patience, ``max_epochs``, ``max_steps``, Ctrl-C, errors.
    Checkpoints hold the parameters as training left them, and the best ones beside them, so that a resumed run goes
    on exactly. The stopping rule is Lightning's own.

    Then, on request, all the data are used, the validation part too; of the phase's ``val/loss`` it can't be told any
    more how well the network generalizes:

    - ``then="retrain"`` (algorithm 7.2): train from the initial parameters on all the data for as long as it took to
      the best validation. As many updates (``count="steps"``), or as many passes (``count="epochs"``, a pass begun
      counts)? On more data a pass takes more updates, and nothing tells which of the two is right.
    - ``then="continue"`` (algorithm 7.3): keep the best parameters and go on with all the data until the loss on the
      validation part falls to the training loss at the stop,

      .. math:: J(\theta; X^{(\mathrm{val})}, y^{(\mathrm{val})}) \le
                \varepsilon = J(\theta_{i^*}; X^{(\mathrm{train})}, y^{(\mathrm{train})}).

      It is cheaper, but that may never come about, hence ``max_extra_epochs``.

    Args:
        monitor: tag of a validation metric.
        patience: validations without improvement before training ends. 5 to 20 epochs' worth are common; more where the
            curve is noisy or the learning rate is restarted.
        mode: ``"min"`` where less is better, ``"max"`` where more is.
        min_delta: a change of at most this much is no improvement, and leaves the best parameters as they are.
        then: what to do with all the data afterwards, None for nothing.
        count: what ``then="retrain"`` counts.
        max_extra_epochs: epochs that ``then="continue"`` takes at most.
        check_finite: end when the metric turns infinite or not a number; otherwise that is no improvement.
        stopping_threshold: end as soon as the metric is better than this, None for never.
        divergence_threshold: end as soon as the metric is worse than this, None for never.

    Raises:
        UserError: where there is no validation, the metric is never logged, or it never is a finite number.

    Example:
        >>> EarlyStopping(patience=5, then="retrain").describe()
        "EarlyStopping(patience=5, then='retrain')"

    Interacts with schedules that need the end known (cosine, one-cycle): stopped early they never reach their low
    rates; leave early stopping away, or take patience that long that only the best parameters matter. A phase has a
    fresh optimizer and a schedule of its own length. With averaged weights the average is what is validated; its state
    comes back together with the parameters. On a quadratic, stopping works like L2, see :func:`equivalent_decay`.

    Source: Goodfellow, Bengio and Courville (2016), Deep Learning, section 7.8, algorithms 7.1 to 7.3.
    """

    monitor: str = "val/loss"
    patience: PositiveInt = 10
    mode: Literal["min", "max"] = "min"
    min_delta: NonNegative = 0.0
    then: Literal["retrain", "continue"] | None = None
    count: Literal["steps", "epochs"] = "steps"
    max_extra_epochs: PositiveInt = 20
    check_finite: bool = True
    stopping_threshold: float | None = None
    divergence_threshold: float | None = None

    read_once = ("patience", "min_delta", "stopping_threshold", "divergence_threshold")

    examples = ({"patience": 1, "min_delta": 10.0},)

    def limits(self) -> Mapping[str, str]:
        """Tell what a later phase cannot hold."""
        return {"sharded": f"then={self.then!r} goes on with a network that is whole"} if self.then else {}

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Tell a metric that nobody logs, and a stop before other plugins have what they are for."""
        if reason := plan.why_never_logged(self.monitor, "val"):
            yield Finding("error", self.name, f"monitor={self.monitor!r}: {reason}")
        earliest, last = self.patience + 1, plan.validations
        for plugin in plan.core.plugins if earliest < last < math.inf else ():
            if earliest <= plugin.needs_until * last:
                message = (
                    f"may end training after {earliest} of {last:g} validations, while {plugin.describe()} needs"
                    f" {plugin.needs_until:.0%} of the run; raise patience, or leave one of them out"
                )
                yield Finding("warning", self.name, message)

    def answers_at(self, hook: str) -> bool:
        """Ask for a further phase only where one is to follow."""
        return hook != "next_phase" or self.then is not None

    def attach(self, core: Core) -> None:
        """Start with nothing seen."""
        self.rule_ = _Rule(
            self.monitor,
            min_delta=self.min_delta,
            patience=self.patience,
            mode=self.mode,
            check_finite=self.check_finite,
            stopping_threshold=self.stopping_threshold,
            divergence_threshold=self.divergence_threshold,
        )
        self.best_: Best | None = None
        self.snapshot_ = Snapshot()
        self.states_: dict[str, dict[str, Any]] = {}
        self.improved_: Mapping[str, float] | None = None
        self.in_phase_ = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a run that never validates."""
        assert isinstance(pl_module, Core)
        if not trainer.enable_validation or (pl_module.data is not None and pl_module.data.val is None):
            raise UserError(
                f"EarlyStopping(monitor={self.monitor!r}): this run has no validation; give Data(val=...), and leave"
                " limit_val_batches above 0"
            )

    def should_stop(self, metrics: Mapping[str, float]) -> bool:
        """Tell whether patience has run out; in a later phase never."""
        if self.in_phase_:
            return False
        if self.monitor not in metrics:
            hint = did_you_mean(self.monitor, metrics)
            logged = "" if "known" in hint else f" (logged are: {', '.join(sorted(metrics))})"
            raise UserError(f"EarlyStopping(monitor={self.monitor!r}): never logged at a validation{hint}{logged}")
        improved, stop = self.rule_.ask(metrics[self.monitor])
        self.improved_ = dict(metrics) if improved else None
        if stop and not improved and self.best_ is None:
            raise UserError(
                f"EarlyStopping(monitor={self.monitor!r}): {metrics[self.monitor]} before it ever was a number:"
                " there is nothing to hand back; lower the learning rate, or look at the validation part"
            )
        return stop

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the network where it is the best so far, before any checkpoint of it is written."""
        if self.improved_ is not None:
            assert isinstance(pl_module, Core)
            self.best_ = Best(pl_module.at.epoch, pl_module.at.index, dict(self.improved_))
            self.snapshot_.take(pl_module.model)
            averagers = pl_module.answers.of("evaluation_weights")
            self.states_ = {plugin.name: copy.deepcopy(plugin.state_dict()) for plugin in averagers}
            self.improved_ = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand back the best network: a spawned process sends its weights home before ``finish`` is asked."""
        assert isinstance(pl_module, Core)
        self.finish(pl_module)
        if self.best_ is None:
            warnings.warn(
                f"EarlyStopping: no validation in {pl_module.at.index} steps; the last parameters stay", stacklevel=2
            )

    def finish(self, core: Core) -> None:
        """Hand back the best network; of a later phase what it made, unless it was cut off."""
        if self.best_ is None or (self.in_phase_ and not core.trainer.interrupted):
            return
        self.snapshot_.put_back(core.model)
        for plugin in core.answers.of("evaluation_weights"):
            plugin.load_state_dict(copy.deepcopy(self.states_[plugin.name]))

    def next_phase(self, core: Core) -> Phase | None:
        """Return the phase that uses all the data, once."""
        if self.then is None or self.in_phase_:
            return None
        if self.best_ is None:
            raise UserError(
                f"EarlyStopping(then={self.then!r}): no validation of this process tells how long to train; validate at"
                " least once, and take strategy='ddp' rather than a spawning one"
            )
        self.in_phase_ = True
        if self.then == "retrain":
            steps = self.best_.step if self.count == "steps" else None
            epochs = self.best_.epoch + 1 if self.count == "epochs" else None
            return Phase("retrain", "initial", max_steps=steps, max_epochs=epochs, without=(self.name,))
        self.train_loss_ = training_loss(core)
        if self.best_.metrics["val/loss"] <= self.train_loss_:
            return None
        return Phase("continue", "current", max_epochs=self.max_extra_epochs, stop_when=self._reached)

    def _reached(self, metrics: Mapping[str, float]) -> bool:
        return metrics["val/loss"] <= self.train_loss_

    def state_dict(self) -> dict[str, Any]:
        """Return the count, the best validation and the network at it."""
        best = None if self.best_ is None else tuple(self.best_)
        weights = self.snapshot_.tensors
        return {"rule": self.rule_.state_dict(), "best": best, "weights": weights, "states": self.states_}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the count, the best validation and the network at it; patience stays as it is set now."""
        self.rule_.load_state_dict({**state_dict["rule"], "patience": self.patience})
        self.best_ = None if state_dict["best"] is None else Best(*state_dict["best"])
        self.snapshot_ = Snapshot(dict(state_dict["weights"]))
        self.states_ = state_dict["states"]


class _Rule(pl.callbacks.EarlyStopping):
    """Lightning's stopping rule, asked with a number instead of being told to look for it."""

    def ask(self, value: float) -> tuple[bool, bool]:
        """Return whether ``value`` is the best so far, and whether to stop."""
        current = torch.tensor(value, dtype=torch.float64)
        counts = not self.check_finite or bool(torch.isfinite(current))
        improved = counts and bool(self.monitor_op(current - self.min_delta, self.best_score))
        stop, _ = self._evaluate_stopping_criteria(current)
        if improved:  # Lightning leaves this out where a threshold ends training
            self.best_score = current
        return improved, stop


@torch.no_grad()
def training_loss(core: Core) -> float:
    """Return J over the training part with the weights to evaluate; every rank works it out for itself.

    In evaluation mode and without transforms, unlike ``train/loss``, which runs along while the weights move.
    """
    assert core.data is not None
    trainer, device = core.trainer, core.trainer.strategy.root_device
    modes = [(layer, layer.training) for layer in core.modules()]
    core.to(device).eval()  # Lightning moves a network off its device when training ends
    total = size = 0.0
    try:
        with core.evaluation(), trainer.precision_plugin.val_step_context():
            for batch in core.data.eval_loader("train"):
                batch = core.transfer_batch_to_device(trainer.precision_plugin.convert_input(batch), device, 0)
                outcome: Any = core.compute_loss(batch)
                loss = getattr(outcome, "loss", outcome)  # a subclass may return J bare
                if loss is not None:
                    count = float(core.count(batch))
                    total, size = total + float(loss) * count, size + count
    finally:
        core.cpu()
        for layer, mode in modes:
            layer.training = mode
    return total / size
