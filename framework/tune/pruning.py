"""Gives a trial up before its end, at the same step on every rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from framework.plugin.host import Host
from framework.plugin.plugin import Plugin
from framework.tune.order import Prune
from framework.tune.storage import open_study

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

PRUNED = "pruned"


def pruner_of(kind: Prune, validations: int) -> Any:
    """Return Optuna's pruner.

    Args:
        kind: which one.
        validations: number of validations of a run, or of runs of a trial for ``"wilcoxon"``.
    """
    from optuna import pruners

    if kind == "median":
        return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=max(1, validations // 10))
    if kind == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=max(1, validations // 27), reduction_factor=3)
    if kind == "hyperband":
        return pruners.HyperbandPruner(min_resource=max(1, validations // 27), max_resource=max(1, validations))
    if kind == "wilcoxon":
        return pruners.WilcoxonPruner(p_threshold=0.1)
    return pruners.NopPruner()


def trial_of(study: Study, number: int) -> Trial:
    """Return the trial of a number, to go on with it."""
    import optuna

    return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


class Pruning(Plugin):
    """Report each validation of a trial's run to the study, and end the run if the study's pruner gives it up.

    The first rank reports and asks; its answer is every rank's, so that all stop at the same step.

    Args:
        storage: where the study is kept.
        study: the study's name.
        trial: the trial's number.
        metric: tag of the figure.
        kind: which pruner.
        validations: number of validations of a run.
    """

    storage: str
    study: str
    trial: int
    metric: str
    kind: str
    validations: int = 1

    def attach(self, core: Host) -> None:
        """Begin to count validations."""
        self.core_, self.done_ = core, 0
        self.trial_: Trial | None = None  # opened by the process that trains

    def should_stop(self, metrics: Mapping[str, float]) -> bool:
        """Report the figure of a validation; return whether the trial is given up."""
        self.done_ += 1
        trainer = self.core_.trainer
        stop = trainer.is_global_zero and self._given_up(metrics.get(self.metric, math.nan))
        return bool(trainer.strategy.broadcast(stop)) if trainer.world_size > 1 else stop

    def _given_up(self, value: float) -> bool:
        if self.trial_ is None:
            study, _ = open_study(self.storage, self.study, "minimize", create=False)
            study.pruner = pruner_of(self.kind, self.validations)  # type: ignore[arg-type]
            self.trial_ = trial_of(study, self.trial)
        trial = self.trial_
        if math.isfinite(value) and self.done_ not in trial.storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, self.done_)  # a resumed run reports some once more
        stop = trial.should_prune()
        if stop:
            trial.set_user_attr(PRUNED, True)
        return stop

    def state_dict(self) -> dict[str, Any]:
        """Return the number of validations."""
        return {"done": self.done_}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of validations."""
        self.done_ = state_dict["done"]
