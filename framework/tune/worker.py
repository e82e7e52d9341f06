"""A worker of a study: takes one trial after another until nothing is left to do."""

from __future__ import annotations

import contextlib
import gc
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from framework.checkpoint.lock import Lock
from framework.errors import UserError, one_line
from framework.ops.keyed import key_of
from framework.settings import plain
from framework.tune.order import Order
from framework.tune.pruning import pruner_of, trial_of
from framework.tune.space import Space
from framework.tune.storage import open_study
from framework.tune.trial import GivenUp, folder_of, train

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

_FAILURES = 10  # in a row end a study
_HEARD = 60.0  # seconds between two signs of life of a trial
_LOST = 600.0  # seconds without one after which a trial of another machine is begun again here
_STARTUP = 10  # trials at random before the sampler learns from them

Tell = Callable[["FrozenTrial"], None]


class Worker:
    """Takes trials of a study and trains them.

    A trial belongs to the process that holds the lock in its folder. The system releases that lock when the process is
    killed; the next worker to look takes the trial and resumes its runs.

    Args:
        order: the study's order.
        trials: number of trials that the study shall have.
        until: time by ``time.time()`` after which no trial is begun.
        epochs: total number of epochs after which no trial is begun.
    """

    def __init__(self, order: Order, trials: float, until: float, epochs: float) -> None:
        self.order, self.trials, self.until, self.epochs = order, trials, until, epochs
        recipe = order.build()
        self.space = Space(order, recipe)
        self.direction = "maximize" if order.mode == "max" else "minimize"
        self.study = open_study(order.where, order.name, self.direction)
        self.epochs_of_run = int(recipe.trainer.get("max_epochs") or 1)
        self.study.pruner = pruner_of(order.prune, self.epochs_of_run)
        self.where = f"{socket.gethostname()}:{order.folder.resolve()}"
        self.elsewhere = "://" in order.where  # machines that do not see one another's files may share the study
        self._lock: Lock | None = None

    def work(self, tell: Tell | None = None) -> None:
        """Train trials until there is none left.

        Args:
            tell: called with each trial that ended here.

        Raises:
            UserError: if ten trials in a row failed.
        """
        while (trial := self._take()) is not None:
            try:
                self._train(trial)
            finally:
                self._leave()
            ended = self._trials()[trial.number]
            if tell is not None:
                tell(ended)
            self._check_failures()
            gc.collect()

    def _train(self, trial: Trial) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        try:
            chosen = self.space.suggest(trial)
            trial.set_user_attr("chosen", plain(chosen))
            heard = _heard_of(trial, self.where) if self.elsewhere else contextlib.nullcontext()
            with heard, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they were told when the study began
                found = train(self.order, trial, chosen, self.epochs_of_run)
        except GivenUp:
            self.study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
        except Exception as error:  # whatever a setting leads to, the other trials go on
            with contextlib.suppress(UpdateFinishedTrialError):
                trial.set_user_attr("error", f"{type(error).__name__}: {one_line(error)}"[:500])
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        else:
            with contextlib.suppress(UpdateFinishedTrialError):  # trained elsewhere too, to the same figures
                for name in ("values", "seconds", "epochs"):
                    trial.set_user_attr(name, found[name])
            self.study.tell(trial.number, found["value"], skip_if_finished=True)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _take(self) -> Trial | None:
        """Return a trial that is this process's from now on: one that was left, a waiting one, or a new one."""
        from optuna.trial import TrialState, create_trial

        while True:
            every = self._trials()
            left = [one for one in every if one.state == TrialState.RUNNING and one.number < self.trials]
            for one in left:
                if self._hold(one, claim=False):
                    return self._opened(one.number)
            if time.time() >= self.until or _epochs(every) >= self.epochs:
                return None
            for one in every:
                if one.state == TrialState.WAITING and one.number < self.trials and self._hold(one, claim=True):
                    return self._opened(one.number)
            if len(every) >= self.trials:
                return None
            self.study.add_trial(create_trial(state=TrialState.WAITING))

    def _hold(self, found: FrozenTrial, *, claim: bool) -> bool:
        """Take the lock of a trial's folder; of a waiting trial, also its state in the storage."""
        from optuna.trial import TrialState

        folder = folder_of(self.order, found.number)
        if not claim and not folder.exists() and self.elsewhere and not _is_lost(found, self.where):
            return False  # at another machine, whose files cannot be seen from here
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder)
        if not lock.take():
            return False
        state = self.study._storage.get_trial(found._trial_id).state  # it may have ended meanwhile
        wanted = TrialState.WAITING if claim else TrialState.RUNNING
        mine = state == wanted
        if mine and claim:
            mine = self.study._storage.set_trial_state_values(found._trial_id, TrialState.RUNNING)
        if mine:
            self._lock = lock
        else:
            if made:  # a trial without a folder here is another machine's
                shutil.rmtree(folder)
            lock.leave()
        return mine

    def _leave(self) -> None:
        if self._lock is not None:
            self._lock.leave()
            self._lock = None

    def _opened(self, number: int) -> Trial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # options that Optuna calls experimental
            self.study.sampler = self._sampler(number)
        return trial_of(self.study, number)

    def _sampler(self, number: int) -> BaseSampler:
        """Return the sampler of one trial: its draws depend on the study's seed and the trial's number alone."""
        from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler

        seed = key_of(self.order.seed, f"trial {number}") & 0x7FFFFFFF
        if number == 0:
            return PartialFixedSampler(self.space.defaults(), RandomSampler(seed=seed))
        if self.order.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=_STARTUP,
        )

    def _check_failures(self) -> None:
        from optuna.trial import TrialState

        ended = [one for one in self._trials() if one.state.is_finished() and one.datetime_complete]
        last = sorted(ended, key=lambda one: str(one.datetime_complete))[-_FAILURES:]
        if len(last) == _FAILURES and all(one.state == TrialState.FAIL for one in last):
            raise UserError(f"the last {_FAILURES} trials failed; the last of them: {last[-1].user_attrs['error']}")


def _epochs(every: list[FrozenTrial]) -> float:
    return float(sum(one.user_attrs.get("epochs", 0) for one in every))


def _is_lost(found: FrozenTrial, here: str) -> bool:
    """Return whether a trial of another machine has not been heard of for so long that it is begun again here.

    If it is still trained there, both get the same figures, and the first counts.
    """
    began = found.datetime_start.timestamp() if found.datetime_start else time.time()
    where, seen = found.user_attrs.get("at", ["", began])
    return bool(where == here or time.time() - seen > _LOST)


@contextlib.contextmanager
def _heard_of(trial: Trial, where: str) -> Iterator[None]:
    """Let the study hear of a trial every minute."""
    from optuna.exceptions import UpdateFinishedTrialError

    ended = threading.Event()

    def tell() -> None:
        with contextlib.suppress(UpdateFinishedTrialError):
            while not ended.is_set():
                trial.storage.set_trial_user_attr(trial._trial_id, "at", [where, time.time()])
                ended.wait(_HEARD)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def main(order: Order, trials: float, until: float, epochs: float) -> None:
    """Train trials in a process of its own, see :class:`Worker`."""
    Worker(order, trials, until, epochs).work()
