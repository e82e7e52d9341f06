"""Gives a trial up before its end, at the same step on every rank."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from framework.tune.order import Order, Prune
from framework.tune.storage import open_study

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

PRUNED = "pruned"


def pruner_of(kind: Prune, epochs: int) -> Any:
    """Return Optuna's pruner.

    Args:
        kind: which one.
        epochs: number of epochs of a run.
    """
    from optuna import pruners

    if kind == "median":
        return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, epochs // 10))
    if kind == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // 27), reduction_factor=3)
    if kind == "hyperband":
        return pruners.HyperbandPruner(min_resource=max(1, epochs // 27), max_resource=max(1, epochs))
    if kind == "wilcoxon":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of being experimental
            return pruners.WilcoxonPruner(p_threshold=0.1)
    return pruners.NopPruner()


def trial_of(study: Study, number: int) -> Trial:
    """Return the trial of a number, to go on with it."""
    import optuna

    return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


class Pruning(pl.Callback):
    """Report each epoch's validation to the study, and end the run if the study's pruner gives its trial up.

    The first rank reports and asks; its answer is every rank's, so that all stop at the same step. It keeps no state:
    what a resumed run reports once more stands in the study already. It is a callback, not a plugin, so that a trial's
    run can be evaluated or resumed like any other.

    Args:
        order: the study's order.
        number: the trial's number.
        epochs: number of epochs of a run.
    """

    def __init__(self, order: Order, number: int, epochs: int) -> None:
        self._order, self._number, self._epochs = order, number, epochs
        self._trial: Trial | None = None  # opened by the process that trains

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the figure of a validation, and stop if the trial is given up."""
        if trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(str(self._order.metric))
        stop = trainer.is_global_zero and self._given_up(
            trainer.current_epoch + 1, math.nan if value is None else float(value)
        )
        if trainer.world_size > 1:
            stop = bool(trainer.strategy.broadcast(stop))
        trainer.should_stop = trainer.should_stop or stop

    def _given_up(self, epoch: int, value: float) -> bool:
        if self._trial is None:
            study = open_study(self._order.where, self._order.name, "minimize", create=False)
            study.pruner = pruner_of(self._order.prune, self._epochs)
            self._trial = trial_of(study, self._number)
        trial = self._trial
        if math.isfinite(value) and epoch not in trial.storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, epoch)
        stop = trial.should_prune()
        if stop:
            trial.set_user_attr(PRUNED, True)
        return stop
