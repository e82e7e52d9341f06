"""Schedules of a plugin's strength, or of any other of its numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Annotated, Any, Literal

from framework.errors import UserError, did_you_mean
from framework.ops.schedules import share_done
from framework.plugin import Host, Plugin, Step, overrides
from framework.settings import Bounds, Probability, check_settings

Kind = Literal["linear", "cosine", "exponential", "jump"]
Span = Annotated[int, Bounds(low=0)] | Probability


def strength_at(t: float, kind: Kind, start: float, end: float) -> float:
    r"""Return the value at the share t of the course from :math:`a_0` (``start``) to :math:`a_1` (``end``).

    .. math::
        a(t) = \begin{cases}
            a_0 + (a_1 - a_0)\,t                              & \texttt{linear} \\
            a_0 + (a_1 - a_0)\,\frac{1 - \cos\pi t}2          & \texttt{cosine} \\
            a_0^{1-t}\, a_1^t                                 & \texttt{exponential} \\
            a_0 \text{ for } t < 1,\ a_1 \text{ from } t = 1  & \texttt{jump}
        \end{cases}

    For t outside [0, 1] it is that of the nearer end.

    Example:
        >>> [strength_at(t, "linear", 0.0, 2.0) for t in (-1.0, 0.0, 0.25, 1.0, 3.0)]
        [0.0, 0.0, 0.5, 2.0, 2.0]
    """
    if t >= 1:
        return end
    if t <= 0 or kind == "jump":
        return start
    if kind == "exponential":
        return math.exp((1 - t) * math.log(start) + t * math.log(end))
    if kind == "cosine":
        t = (1 - math.cos(math.pi * t)) / 2
    return start + (end - start) * t


class StrengthSchedule(Plugin):
    r"""Vary a plugin's strength, or any other of its numbers, during the run.

    .. math:: \alpha_s = a(t_s), \qquad t_s = \frac{s - b}{u - b}

    with s the optimizer steps done, b ``begin`` and u ``until``, and a of :func:`strength_at`. The value is a function
    of the step alone, so a resumed run has the same. Where a run resumed with another length moves ``until``, the
    value goes on from where it is and reaches its end there. After training the setting has its declared value again.

    Args:
        strength: ``"<plugin>.<setting>"`` such as ``"norm_penalty.alpha"`` or ``"weight_noise.std"``; a setting that
            the plugin reads at each step, as it does strengths.
        kind: the shape of the curve.
        start: the value up to ``begin``, None for the declared one.
        end: the value from ``until`` on, None for the declared one.
        begin: when the change begins: an integer in steps, or a float as a share of the run.
        until: when it ends, likewise.

    Raises:
        UserError: if plugin or setting are unknown, the setting is not a number, start or end are out of its bounds,
            begin comes after until, or a share is given and the run has no end.

    Example:
        >>> StrengthSchedule("norm_penalty.alpha", start=0.0, until=0.2).describe()
        "StrengthSchedule(strength='norm_penalty.alpha', start=0.0, until=0.2)"

    Interacts with: any plugin; the value is logged as ``strength/<plugin>.<setting>``. For the learning rate use
    ``Schedule``, since the optimizer reads ``optimizer.lr`` only once.

    Source: Bowman et al. (2016), Generating sentences from a continuous space, for a weight that rises from 0.
    """

    strength: str
    kind: Kind = "linear"
    start: float | None = None
    end: float | None = None
    begin: Span = 0.0
    until: Span = 1.0

    examples = ({"strength": "norm_penalty.alpha", "start": 0.0, "with": {"norm_penalty": {"alpha": 0.2}}},)
    absent = ({"start": 0.2},)

    read_once = ("start", "end")

    @property
    def moves(self) -> Collection[str]:
        """The setting that this plugin changes."""
        return (self.strength,)

    def check(self) -> None:
        """Check the name of the setting, and that its value would change."""
        if self.strength.count(".") != 1:
            raise UserError(f"StrengthSchedule(strength={self.strength!r}): must be '<plugin>.<setting>'")
        if self.start is None and self.end is None:
            raise UserError("StrengthSchedule(start=None, end=None): the value would never change; give one of them")
        if type(self.begin) is type(self.until) and self.begin > self.until:
            raise UserError(
                f"StrengthSchedule(begin={self.begin!r}, until={self.until!r}): begin comes after until; swap them"
            )

    def attach(self, core: Host) -> None:
        """Find the plugin and its setting, and check start and end against its bounds."""
        names = {plugin.name: plugin for plugin in core.plugins if plugin is not self}
        name, self.setting_ = self.strength.split(".")
        if name not in names:
            raise UserError(f"{self._what}: no plugin is called {name!r}{did_you_mean(name, names)}")
        self.plugin_ = names[name]
        for rival in core.plugins:
            if rival is not self and isinstance(rival, StrengthSchedule) and rival.strength == self.strength:
                raise UserError(f"{self._what}: {rival.name!r} changes it too; remove one (--without {rival.name})")
        numbers = {f.name for f in dataclasses.fields(self.plugin_) if _is_number(getattr(self.plugin_, f.name))}
        if self.setting_ not in numbers:
            raise UserError(
                f"{self._what}: {name} has no number {self.setting_!r}{did_you_mean(self.setting_, numbers)}"
            )
        if core.plugins.index(self) > core.plugins.index(self.plugin_) and overrides(self.plugin_, "begin_step"):
            raise UserError(f"{self._what}: {name!r} reads its settings at begin_step; put {self.name!r} before it")
        self.course_: tuple[float, float, float] | None = None  # since, until, and the share at since
        self.before_: dict[str, Any] = {}
        self.declared_value_ = getattr(self.plugin_, self.setting_)
        self.way_ = [float(self.declared_value_ if end is None else end) for end in (self.start, self.end)]
        try:
            for end in self.way_:
                self._move(end)
                check_settings(self.plugin_)
                self.plugin_.check()
        finally:
            self.finish(core)
        if self.kind == "exponential" and min(self.way_) <= 0:
            raise UserError(
                f"{self._what}: an exponential curve from {self.way_[0]} to {self.way_[1]} needs both above 0"
            )

    def begin_step(self, step: Step) -> None:
        """Set the setting to its value at this step."""
        if self.course_ is None or not step.index:
            self.course_ = self._course(step)
        t = share_done(step.index, *self.course_)
        value = strength_at(t, self.kind, *self.way_)
        self._move(value)
        step.record(f"strength/{self.strength}", value)

    def _course(self, step: Step) -> tuple[float, float, float]:
        """Return when the change begins and ends, and the share that is done at its beginning."""
        begin, until = self.span_ = [self._steps(name, step) for name in ("begin", "until")]
        if begin > until:
            raise UserError(
                f"{self._what}: begin={self.begin!r} is step {begin:g} and until={self.until!r} is step {until:g} of"
                " this run: begin comes after until; give both in steps, or both as shares"
            )
        before, self.before_ = self.before_, {}
        if not before:
            return begin, until, 0.0
        since, end, share = before["course"]
        if self.span_ == before["span"]:
            return since, end, share
        # the run's length has changed since the checkpoint
        since = max(float(step.index), begin) if step.index <= since else float(step.index)
        return since, max(until, since), share_done(step.index, *before["course"])

    def state_dict(self) -> dict[str, Any]:
        """Return the course of the change, for a resumed run of another length."""
        if self.course_ is None:
            return dict(self.before_)
        return {"span": list(self.span_), "course": list(self.course_)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the course of the change."""
        self.before_, self.course_ = dict(state_dict), None

    def _steps(self, name: str, step: Step) -> float:
        span: float = getattr(self, name)
        if isinstance(span, int) or span == 0:
            return span
        if not math.isfinite(step.total):
            raise UserError(
                f"{self._what}: {name}={span!r} is a share of a run that has no end; give it in steps (a whole number),"
                " or set the trainer's max_epochs or max_steps"
            )
        return span * step.total

    def _move(self, value: float) -> None:
        setattr(self.plugin_, self.setting_, value)

    def finish(self, core: Host) -> None:
        """Restore the declared value."""
        setattr(self.plugin_, self.setting_, self.declared_value_)

    @property
    def _what(self) -> str:
        return f"StrengthSchedule(strength={self.strength!r})"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
