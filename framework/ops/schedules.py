"""Learning rates over a run: closed forms, a curve that a resumed run goes on with, any scheduler behind a warm-up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import lr_scheduler

from framework.errors import UserError

START = 0.04  # where one cycle begins, and ``START / 1e4`` where it ends: the defaults of torch's OneCycleLR
_FALLING = ("linear", "cosine", "one_cycle")
_AGAIN = "resume with the run's length as it was, or start a new run from its weights: --weights"


def warm_up(s: int, warmup: int) -> float:
    r"""Return the linear rise :math:`\min(1, \frac{s + 1}{w + 1})`: above 0 from the first step on, 1 after w steps."""
    return min(1.0, (s + 1) / (warmup + 1))


def linear(t: float, end: float) -> float:
    r"""Return the linear fall from 1 to e: :math:`1 - (1 - e)\,t`."""
    return 1 - (1 - end) * t


def cosine(t: float, end: float) -> float:
    r"""Return half a cosine wave from 1 to e: :math:`e + \frac{1 - e}2 (1 + \cos \pi t)`."""
    return end + (1 - end) * (1 + math.cos(math.pi * t)) / 2


def share_done(s: float, since: float, until: float, share: float = 0.0) -> float:
    r"""Return the completed share of a change after s steps, which is :math:`t_0` at step a and 1 from step b on.

    .. math:: t(s) = t_0 + (1 - t_0)\,\frac{s - a}{b - a}

    Args:
        s: steps done.
        since: a, before which it is :math:`t_0`.
        until: b.
        share: :math:`t_0`; above 0 where a run with another length goes on.

    Example:
        >>> [share_done(s, 2, 6) for s in (0, 2, 3, 6, 9)], share_done(7, 5, 9, share=0.75)
        ([0.0, 0.0, 0.25, 1.0, 1.0], 0.875)
    """
    if s >= until:
        return 1.0
    return share if s <= since else share + (1 - share) * ((s - since) / (until - since))


@dataclasses.dataclass
class Course:
    r"""The factor f(s) on the learning rate after s steps, and its lengths, in steps.

    A fall is a function of its completed share, see :func:`share_done`.

    Args:
        kind: a curve of ``plugins.schedule.Schedule``.
        who: who asks, for errors.
        warmup: length of the warm-up.
        end: factor at the end of a fall.
        gamma: factor of each fall of ``step``, ``multi_step``, ``exponential``.
        period: length between two falls of ``step``.
        milestones: when ``multi_step`` falls.
        until: where the fall ends.
        since: where the fall begins; by default the end of the warm-up.
        share: the completed share there.

    Example:
        >>> cycle = Course("one_cycle", "Schedule()", warmup=2, end=0.0, until=4)
        >>> [round(cycle(s), 3) for s in range(6)]
        [0.04, 0.52, 1.0, 0.5, 0.0, 0.0]
    """

    kind: str
    who: str
    warmup: int = 0
    end: float = 0.0
    gamma: float = 0.1
    period: int = 1
    milestones: tuple[int, ...] = ()
    until: int = 0
    since: int = -1
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.since < 0:
            self.since = self.warmup

    def done(self, s: int) -> float:
        """Return the completed share t of the fall."""
        return share_done(s, self.since, self.until, self.share)

    def __call__(self, s: int) -> float:
        """Return the factor f(s)."""
        kind, warmup = self.kind, self.warmup
        if kind == "one_cycle":
            return cosine(1 - s / warmup, START) if s < warmup else cosine(self.done(s), self.end)
        rise = warm_up(s, warmup)
        if kind == "cosine":
            return rise * cosine(self.done(s), self.end)
        if kind == "linear":
            return rise * linear(self.done(s), self.end)
        if kind == "exponential":
            return rise * self.gamma ** max(s - warmup, 0)
        if kind == "step":
            return rise * self.gamma ** (s // self.period)
        if kind == "multi_step":
            return rise * self.gamma ** sum(milestone <= s for milestone in self.milestones)
        return rise

    def go_on(self, before: Mapping[str, Any], s: int) -> None:
        """Take up the course of a checkpoint, so that the factor at step s is what it would have been.

        Warm-up, period and milestones keep their lengths in steps. If the run's length has changed, a fall goes on from
        where it is, and reaches its end with the run.

        Args:
            before: the attributes of the course in the checkpoint.
            s: steps done at the checkpoint.

        Raises:
            UserError: if the fall has come to an end near 0, or the run now ends within the warm-up.
        """
        old = dataclasses.replace(self, **{name: before[name] for name in ("warmup", "until", "since", "share")})
        self.warmup, self.period, self.milestones = old.warmup, before["period"], tuple(before["milestones"])
        self.since, self.share = old.since, old.share
        if self.kind not in _FALLING or self.until == old.until:
            return
        if self.until <= old.warmup:
            raise UserError(
                f"{self.who}: this run was started with a warm-up of {old.warmup} and would now end within it; {_AGAIN}"
            )
        if s <= old.since:
            return
        self.since, self.share = s, old.done(s)
        if self.share == 1.0 and self.end < 1e-3 and self.until > s:
            raise UserError(
                f"{self.who}: this learning rate schedule came to its end, at {self.end:.3g} of the rate, where the run"
                f" ended before ({s} done): more would train next to nothing, and a new fall would be a jump; start a"
                " new run from its weights: --weights"
            )


class Curve(lr_scheduler.LambdaLR):
    """Multiplies every group's learning rate by the factor of a :class:`Course`, also in a resumed run.

    The rate of a group that was added to the optimizer during the run is multiplied from the next step on.
    """

    def get_lr(self) -> list[Any]:
        """Return the rates of the next step."""
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            self.base_lrs.append(group.setdefault("initial_lr", group["lr"]))
            self.lr_lambdas.append(self.lr_lambdas[0])
        factor = self.lr_lambdas[0](self.last_epoch)
        return [rate * factor for rate in self.base_lrs]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, and take up the course of the checkpoint; files of version 0.1.0 have none."""
        kept = next(iter(state_dict["lr_lambdas"]), None)
        super().load_state_dict({**state_dict, "lr_lambdas": []})
        if kept is not None:
            course: Any = self.lr_lambdas[0]  # the same one for all groups
            course.go_on(kept, self.last_epoch)


class Behind(lr_scheduler.LRScheduler):
    r"""Runs a scheduler behind a linear warm-up of w steps, which rises to that scheduler's first rates.

    .. math:: \eta_s = \min\Bigl(1, \frac{s + 1}{w + 1}\Bigr)\,\rho_{\max(s - w, 0)}

    with :math:`\rho_i` the rates of the scheduler alone after i steps. Other than by torch's ``SequentialLR`` these are
    exact for schedulers that compute a rate from the one before. A ``OneCycleLR`` stays where it ended.

    Args:
        inner: the scheduler, newly made.
        warmup: w.
        who: who asks, for errors.
        filled: arguments of ``inner`` that follow from the run's length, by name.
        apart: two groups whose rates must stay apart, which the first rates above 0 show; None for no check.

    Raises:
        UserError: if ``inner`` gives the two groups the same rate, or a group is added to the optimizer.
    """

    def __init__(
        self,
        inner: lr_scheduler.LRScheduler,
        warmup: int,
        who: str,
        filled: Mapping[str, int],
        apart: tuple[int, int] | None = None,
    ) -> None:
        self.optimizer, self.inner = inner.optimizer, inner
        self._warmup, self._who, self._filled, self._apart = warmup, who, dict(filled), apart
        self._last = inner.total_steps - 1 if isinstance(inner, lr_scheduler.OneCycleLR) else math.inf
        self._first = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.base_lrs = list(getattr(inner, "base_lrs", self._first))
        self.last_epoch = 0
        self._finish_step()

    def step(self, epoch: int | None = None) -> None:
        """Set the rates of the next step."""
        self.last_epoch += 1
        if len(self.optimizer.param_groups) != len(self._first):
            raise UserError(
                f"{self._who}: the optimizer has {len(self.optimizer.param_groups)} parameter groups, and had"
                f" {len(self._first)} when {type(self.inner).__name__} was made, which has no rate for new ones; use a"
                " curve such as 'cosine', or add all groups before training"
            )
        if self._warmup < self.last_epoch <= self._warmup + self._last:
            self.inner.step()
        self._finish_step()

    def _finish_step(self) -> None:
        groups = self.optimizer.param_groups
        if self._warmup and self.last_epoch <= self._warmup:
            share = warm_up(self.last_epoch, self._warmup)
            for group, rate in zip(groups, self._first, strict=True):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate * share)
                else:
                    group["lr"] = rate * share
        self._last_lr = [group["lr"] for group in groups]
        if self._apart is not None:
            one, other = (float(groups[index]["lr"]) for index in self._apart)
            if one == other != 0:
                raise UserError(
                    f"{self._who}: {type(self.inner).__name__} gives every parameter group the same rate ({one:.4g}),"
                    " which undoes lr_scale of the optimizer's groups; leave lr_scale out, or use a curve such as"
                    " 'cosine', which multiplies the rates"
                )
            if one or other:
                self._apart = None

    def state_dict(self) -> dict[str, Any]:
        """Return the steps done, the lengths of the course, and the scheduler's state."""
        return {
            "last_epoch": self.last_epoch,
            "warmup": self._warmup,
            "filled": self._filled,
            "inner": self.inner.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; version 0.1.0 wrote that of the scheduler alone, or of a ``SequentialLR``.

        Raises:
            UserError: if the run's length has changed, and with it the course of the scheduler.
        """
        self.last_epoch = state_dict["last_epoch"]
        inner: dict[str, Any] | None = state_dict.get("inner", state_dict)
        before: Mapping[str, Any] = state_dict.get("filled", state_dict)
        self._warmup = state_dict.get("warmup", self._warmup)
        if "_schedulers" in state_dict:  # its undone first step would be missing within the warm-up
            (self._warmup,) = state_dict["_milestones"]
            inner = None if self.last_epoch < self._warmup else state_dict["_schedulers"][1]
        for name, now in self._filled.items():
            if before.get(name, now) != now:
                kind = type(self.inner).__name__
                raise UserError(
                    f"{self._who}: {name}, which follows from the run's length, was {before[name]} when this run was"
                    f" started and would be {now} now: {kind} cannot change its length on the way, and the learning"
                    f" rate would jump; {_AGAIN}"
                )
        if inner is not None:
            self.inner.load_state_dict(inner)
