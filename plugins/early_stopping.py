"""Early stopping: stop when validation stops improving, restore the best weights, then train on all data."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, cast

import pytorch_lightning as pl
import torch

from framework.errors import UserError, did_you_mean
from framework.ops.snapshot import Snapshot
from framework.plugin import Finding, Host, Phase, Plan, Plugin
from framework.settings import NonNegative, PositiveInt


def equivalent_decay(steps: int, lr: float) -> float:
    r"""Return the strength of the L2 penalty that stopping after a number of steps approximates.

    Gradient descent from the origin on a quadratic with Hessian eigenvalues :math:`\lambda_i` covers, after
    :math:`\tau` steps of size :math:`\epsilon`, the share :math:`1 - (1 - \epsilon\lambda_i)^\tau` of the distance to
    the minimum; L2 of strength :math:`\alpha` covers :math:`\lambda_i / (\lambda_i + \alpha)`. To first order in
    :math:`\tau\epsilon\lambda_i` they are equal for

    .. math:: \alpha = \frac{1}{\tau\epsilon}

    Example:
        >>> equivalent_decay(steps=100, lr=0.1)
        0.1

    Source: Goodfellow, Bengio and Courville (2016), Deep Learning, equation 7.45.
    """
    return 1 / (steps * lr)


class Best(NamedTuple):
    """The best validation: when it was, and its metrics.

    Args:
        epoch: the epoch, from 0.
        step: optimizer steps done before it.
        metrics: metrics by tag.
    """

    epoch: int
    step: int
    metrics: dict[str, float]


class EarlyStopping(Plugin):
    r"""End training when validation stops improving, and restore the parameters of the best validation.

    .. math:: i^* = \arg\min_i J(\theta_i; X^{(\mathrm{val})}, y^{(\mathrm{val})}), \qquad
              \text{stop at the first } i \text{ with } \mathit{patience} \text{ validations since } i^*

    The best parameters and buffers are restored however training ends: patience, ``max_epochs``, ``max_steps``, Ctrl-C,
    errors. Checkpoints hold the current parameters and, beside them, the best ones, so that a resumed run continues
    exactly. The stopping rule is Lightning's own.

    Then, on request, training continues on all the data, including the validation part; the ``val/loss`` of that phase
    no longer measures how well the network generalizes:

    - ``then="retrain"`` (algorithm 7.2): train from the initial parameters on all the data for as long as it took to
      reach the best validation: as many updates (``count="steps"``) or as many epochs (``count="epochs"``, an epoch
      begun counts). An epoch of more data has more updates, and there is no rule for which of the two is right.
    - ``then="continue"`` (algorithm 7.3): keep the best parameters and go on with all the data until the loss on the
      validation part falls to the training loss at the stop,

      .. math:: J(\theta; X^{(\mathrm{val})}, y^{(\mathrm{val})}) \le
                \varepsilon = J(\theta_{i^*}; X^{(\mathrm{train})}, y^{(\mathrm{train})}).

      It is cheaper, but this may never happen, hence ``max_extra_epochs``.

    Args:
        monitor: tag of a validation metric, None for the recipe's ``monitor``.
        patience: validations without improvement before training ends. 5 to 20 epochs' worth are common; more if the
            curve is noisy or the learning rate is restarted.
        mode: ``"min"`` if lower values are better, ``"max"`` if higher ones are; None for the recipe's ``mode``, and
            ``"min"`` for another metric than the recipe's.
        min_delta: a change of at most this much does not count as an improvement.
        then: how to train on all the data afterwards, None for not at all.
        count: what ``then="retrain"`` counts.
        max_extra_epochs: largest number of epochs of ``then="continue"``.
        check_finite: whether to stop when the metric is infinite or NaN; otherwise that counts as no improvement.
        stopping_threshold: stop as soon as the metric is better than this, None for never.
        divergence_threshold: stop as soon as the metric is worse than this, None for never.

    Raises:
        UserError: if there is no validation, the metric is never logged, or it is never finite.

    Example:
        >>> EarlyStopping(patience=5, then="retrain").describe()
        "EarlyStopping(patience=5, then='retrain')"

    Interacts with schedules that need a known end (cosine, one-cycle): stopped early, they never reach their low rates;
    leave early stopping out, or set patience so high that only the best parameters matter. A later phase has a new
    optimizer and a schedule of its own length. With averaged weights the average is validated, and its state is
    restored together with the parameters. On a quadratic, early stopping acts like L2, see :func:`equivalent_decay`.

    Source: Goodfellow, Bengio and Courville (2016), Deep Learning, section 7.8, algorithms 7.1 to 7.3.
    """

    monitor: str | None = None
    patience: PositiveInt = 10
    mode: Literal["min", "max"] | None = None
    min_delta: NonNegative = 0.0
    then: Literal["retrain", "continue"] | None = None
    count: Literal["steps", "epochs"] = "steps"
    max_extra_epochs: PositiveInt = 20
    check_finite: bool = True
    stopping_threshold: float | None = None
    divergence_threshold: float | None = None

    read_once = ("patience", "min_delta", "stopping_threshold", "divergence_threshold")

    examples = ({"patience": 1, "min_delta": 10.0},)

    restores_best = True

    def _watched(self, monitor: str, mode: str) -> tuple[str, Literal["min", "max"]]:
        """Return the metric that is watched, and its mode, given the recipe's."""
        own = self.monitor is None or self.monitor == monitor
        chosen: Any = self.mode or (mode if own else "min")
        return self.monitor or monitor, chosen

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass with a later phase, with the reason."""
        return {"sharded": f"then={self.then!r} continues with an unsharded network"} if self.then else {}

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Report a metric that is never logged, and a stop that may come before other plugins take effect."""
        monitor, mode = self._watched(plan.monitor, plan.mode)
        if reason := plan.why_never_logged(monitor, "val"):
            yield Finding("error", self.name, f"monitor={monitor!r}: {reason}")
            return
        if reason := plan.why_other_direction(monitor, mode):
            yield Finding("warning", self.name, f"monitor={monitor!r}: {reason}")
        if plan.monitor and monitor != plan.monitor:
            message = (
                f"monitor={monitor!r}, while the recipe's is {plan.monitor!r}: the network that is returned is the best"
                " by the first, run.metrics and best.ckpt are of the best epoch by the second; give Recipe(monitor=...)"
            )
            yield Finding("warning", self.name, message)
        earliest, last = self.patience + 1, plan.validations
        for plugin in plan.core.plugins if earliest < last < math.inf else ():
            if earliest <= plugin.needs_until * last:
                message = (
                    f"may end training after {earliest} of {last:g} validations, while {plugin.describe()} needs"
                    f" {plugin.needs_until:.0%} of the run; raise patience, or leave one of them out"
                )
                yield Finding("warning", self.name, message)

    def answers_at(self, hook: str) -> bool:
        """Answer at ``next_phase`` only if a further phase is configured."""
        return hook != "next_phase" or self.then is not None

    def attach(self, core: Host) -> None:
        """Reset the stopping rule and the best validation."""
        self.core_ = core
        self.monitor_, mode = self._watched(core.monitor, core.mode)
        self.rule_ = _Rule(
            self.monitor_,
            min_delta=self.min_delta,
            patience=self.patience,
            mode=mode,
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
        """Raise an error if the run never validates."""
        data = cast(Host, pl_module).data
        if not trainer.enable_validation or (data is not None and not data.validates):
            raise UserError(
                f"EarlyStopping(monitor={self.monitor_!r}): this run has no validation; give Data(val=...), and leave"
                " limit_val_batches above 0"
            )

    def should_stop(self, metrics: Mapping[str, float]) -> bool:
        """Return whether patience is exhausted; never in a later phase."""
        if self.in_phase_:
            return False
        self.monitor_ = self.monitor_ or self.core_.monitor  # a LightningModule's is known once it logs
        if self.monitor_ not in metrics:
            hint = did_you_mean(self.monitor_, metrics)
            logged = "" if "known" in hint else f" (logged are: {', '.join(sorted(metrics))})"
            raise UserError(f"EarlyStopping(monitor={self.monitor_!r}): never logged at a validation{hint}{logged}")
        improved, stop = self.rule_.ask(metrics[self.monitor_])
        self.improved_ = dict(metrics) if improved else None
        if stop and not improved and self.best_ is None:
            raise UserError(
                f"EarlyStopping(monitor={self.monitor_!r}): {metrics[self.monitor_]} before it was ever finite, so"
                " there is nothing to restore; lower the learning rate, or check the validation part"
            )
        return stop

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the network if it is the best so far, before any checkpoint is written."""
        if self.improved_ is not None:
            core = cast(Host, pl_module)
            self.best_ = Best(core.at.epoch, core.at.index, dict(self.improved_))
            self.snapshot_.take(core.model)
            averagers = core.answers.of("evaluation_weights")
            self.states_ = {plugin.name: copy.deepcopy(plugin.state_dict()) for plugin in averagers}
            self.improved_ = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the best network here, since a spawned process returns its weights before ``finish`` is called."""
        core = cast(Host, pl_module)
        self.finish(core)
        if self.best_ is None:
            warnings.warn(
                f"EarlyStopping: no validation in {core.at.index} steps; the last parameters stay",
                stacklevel=2,
            )

    def finish(self, core: Host) -> None:
        """Restore the best network; after a later phase, keep its result unless it was interrupted."""
        if self.best_ is None or (self.in_phase_ and not core.trainer.interrupted):
            return
        self.snapshot_.put_back(core.model)
        for plugin in core.answers.of("evaluation_weights"):
            plugin.load_state_dict(copy.deepcopy(self.states_[plugin.name]))

    def next_phase(self, core: Host) -> Phase | None:
        """Return the phase that trains on all the data; there is one at most."""
        if self.then is None or self.in_phase_:
            return None
        if self.best_ is None:
            raise UserError(
                f"EarlyStopping(then={self.then!r}): no validation of this process says how long to train; validate"
                " at least once, and use strategy='ddp' rather than a spawning one"
            )
        self.in_phase_ = True
        if self.then == "retrain":
            steps = self.best_.step if self.count == "steps" else None
            epochs = self.best_.epoch + 1 if self.count == "epochs" else None
            return Phase("retrain", "initial", max_steps=steps, max_epochs=epochs, without=(self.name,))
        self.train_loss_ = core.training_loss()
        if self.best_.metrics["val/loss"] <= self.train_loss_:
            return None
        return Phase("continue", "current", max_epochs=self.max_extra_epochs, stop_when=self._reached)

    def _reached(self, metrics: Mapping[str, float]) -> bool:
        return metrics["val/loss"] <= self.train_loss_

    def state_dict(self) -> dict[str, Any]:
        """Return the stopping rule's counters, the best validation and its network."""
        best = None if self.best_ is None else tuple(self.best_)
        weights = self.snapshot_.tensors
        return {"rule": self.rule_.state_dict(), "best": best, "weights": weights, "states": self.states_}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the counters, the best validation and its network; patience keeps its current setting."""
        self.rule_.load_state_dict({**state_dict["rule"], "patience": self.patience})
        self.best_ = None if state_dict["best"] is None else Best(*state_dict["best"])
        self.snapshot_ = Snapshot(dict(state_dict["weights"]))
        self.states_ = state_dict["states"]


class _Rule(pl.callbacks.EarlyStopping):
    """Lightning's stopping rule, called with a value instead of reading it from the trainer."""

    def ask(self, value: float) -> tuple[bool, bool]:
        """Return whether ``value`` is the best so far, and whether to stop."""
        current = torch.tensor(value, dtype=torch.float64)
        counts = not self.check_finite or bool(torch.isfinite(current))
        improved = counts and bool(self.monitor_op(current - self.min_delta, self.best_score))
        stop, _ = self._evaluate_stopping_criteria(current)
        if improved:  # Lightning does not update it when a threshold ends training
            self.best_score = current
        return improved, stop
