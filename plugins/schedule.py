"""Learning rate schedules: warm-up and curve, one-cycle, plateau, or any scheduler of torch's."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch.optim import lr_scheduler

from framework.errors import UserError, did_you_mean
from framework.ops.schedules import START, Behind, Course, Curve
from framework.plugin import Finding, Host, Plan, Plugin
from framework.settings import Bounds, NonNegative, Positive, PositiveInt, Probability

Span = Annotated[int, Bounds(low=0)] | Probability
# the settings that each kind reads; _NEEDS has those that it requires
_READS: dict[str, tuple[str, ...]] = {
    "constant": ("warmup",),
    "linear": ("warmup", "end"),
    "cosine": ("warmup", "end"),
    "one_cycle": ("warmup", "end"),
    "step": ("warmup", "period", "gamma"),
    "multi_step": ("warmup", "milestones", "gamma"),
    "exponential": ("warmup", "gamma"),
}
_CLASS_READS: dict[type, tuple[str, ...]] = {
    lr_scheduler.ReduceLROnPlateau: ("options", "monitor"),
    lr_scheduler.OneCycleLR: ("options",),  # it has a warm-up of its own
}
_LENGTHS = ("T_max", "total_steps")  # arguments of classes that default to the length of the run behind the warm-up
_RATES = ("base_lr", "max_lr")  # arguments of classes that are rates in place of the optimizer's
_NEEDS: dict[str, tuple[str, ...]] = {"step": ("period",), "multi_step": ("milestones",), "exponential": ("gamma",)}


def scheduler_class(kind: type | str) -> type[lr_scheduler.LRScheduler] | None:
    """Return a scheduler class given by name in ``torch.optim.lr_scheduler``, by dotted path, or as a class.

    None stands for one of the curves of :class:`Schedule`.

    Raises:
        UserError: if there is no such curve or class.

    Example:
        >>> scheduler_class("plateau").__name__, scheduler_class("cosine")
        ('ReduceLROnPlateau', None)
    """
    if kind in _READS:
        return None
    found: Any = lr_scheduler.ReduceLROnPlateau if kind == "plateau" else kind
    if isinstance(found, str) and "." in found:
        module, _, name = found.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"Schedule(kind={kind!r}): {error}; give 'module.ClassName'") from error
    elif isinstance(found, str):
        classes = {name: one for name, one in vars(lr_scheduler).items() if _is_scheduler(one) and name[0] != "_"}
        if found not in classes:
            known = [*_READS, "plateau", *classes]
            raise UserError(f"Schedule(kind={kind!r}): there is no such schedule{did_you_mean(found, known)}")
        found = classes[found]
    if not _is_scheduler(found):
        raise UserError(f"Schedule(kind={kind!r}): kind must be a curve's name or a subclass of torch's LRScheduler")
    return found  # type: ignore[no-any-return]


def _waits(cls: type | None) -> bool:
    return cls is not None and issubclass(cls, lr_scheduler.ReduceLROnPlateau)


def _is_scheduler(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, lr_scheduler.LRScheduler) and one is not lr_scheduler.LRScheduler


class Schedule(Plugin):
    r"""Set the learning rate over the run: warm-up and curve, one cycle, plateau, or any scheduler of torch's.

    .. math:: \eta_s = \eta\, f(s)

    with the same factor f for every parameter group. With s of n steps (or epochs) done, w of them warm-up, and
    t = (s - w) / (n - w) the completed share of the rest:

    .. math::
        f(s) = \min\Bigl(1, \frac{s + 1}{w + 1}\Bigr) \cdot \begin{cases}
            1                                      & \texttt{constant} \\
            1 - (1 - e)\,t                         & \texttt{linear} \\
            e + \frac{1 - e}2 (1 + \cos\pi t)      & \texttt{cosine} \\
            \gamma^{\lfloor s / \text{period}\rfloor} & \texttt{step} \\
            \gamma^{\#\{m \le s\}}                 & \texttt{multi\_step, milestones } m \\
            \gamma^{\max(s - w, 0)}                & \texttt{exponential}
        \end{cases}

    ``one_cycle`` rises by half a cosine wave from 0.04 to 1 during the warm-up and falls by another to e at the last
    step, as torch's OneCycleLR of ``pct_start`` (w + 1) / n; ``plateau`` lowers the rate when the monitored metric
    stops falling. Lengths are integers, in steps (or epochs), or floats, as shares of the run: ``warmup=500`` or
    ``warmup=0.05``.

    A scheduler class runs behind the warm-up as it does alone from then on. In a run resumed with another length,
    warm-up, period and milestones keep their lengths in steps, and ``linear``, ``cosine`` and ``one_cycle`` fall from
    the rate they have reached to e at the new end; refused where they have ended near 0, and for classes whose length
    follows from the run's.

    Args:
        kind: one of the above, or a scheduler class of ``torch.optim.lr_scheduler`` or a third party's, or its name.
        warmup: length w of the warm-up, usually 0.02 to 0.1 of the run; 0 is none, but for ``one_cycle`` it means 0.3.
        end: e, the factor at the end of the run; 0 means 4e-6 for ``one_cycle``, as torch's.
        period: length between two falls of ``step``.
        milestones: when ``multi_step`` falls.
        gamma: γ, the factor of each fall; by default 0.1, required for ``exponential``.
        monitor: the metric that ``plateau`` watches.
        options: arguments of ``ReduceLROnPlateau`` (``{"patience": 5, "factor": 0.5}``) or of the scheduler class;
            ``T_max`` and ``total_steps`` default to the length of the run behind the warm-up if the class has them.
            Torch's ``max_lr`` and ``base_lr`` are multiplied by each group's ``lr_scale``, unless they are lists;
            ``eta_min`` and ``min_lr`` are not.
        interval: unit of the schedule, ``"step"`` or ``"epoch"``; a plateau is always checked after validation.

    Raises:
        UserError: if a setting is missing, unknown or not read by the kind, a share is given and the run has no end,
            the warm-up is too long, or a class gives groups of different ``lr_scale`` the same rate.

    Example:
        >>> Schedule("cosine", warmup=0.05).describe()
        'Schedule(warmup=0.05)'
        >>> Schedule("multi_step", milestones=[30, 60], interval="epoch").describe()
        "Schedule(kind='multi_step', milestones=[30, 60], interval='epoch')"

    Interacts with: ``Optimizer``, whose ``lr`` and ``lr_scale`` it multiplies; early stopping, which cuts off the
    end of the curve.

    Source: Goodfellow, Bengio and Courville (2016), Deep Learning, section 8.3.1; Loshchilov and Hutter (2017), SGDR,
    for the cosine; Goyal et al. (2017) for the warm-up; Smith and Topin (2018), Super-convergence, for one cycle.
    """

    kind: type[lr_scheduler.LRScheduler] | str = "cosine"
    warmup: Span = 0
    end: NonNegative = 0.0
    period: PositiveInt | Annotated[float, Bounds(low=0, high=1, open_low=True)] | None = None
    milestones: Sequence[Span] = ()
    gamma: Positive | None = None
    monitor: str = "val/loss"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    interval: Literal["step", "epoch"] = "step"

    read_once = ("warmup", "end", "period", "gamma")

    examples = (
        {"kind": "cosine", "warmup": 2},
        {"kind": "multi_step", "milestones": [1], "interval": "epoch"},
        {"kind": "plateau", "options": {"patience": 0, "threshold": 1.0}},
    )
    absent = ({"kind": "constant", "warmup": 0}, {"kind": "constant", "milestones": ()}, None)

    def check(self) -> None:
        """Check that the settings that the kind requires are given, and none that it does not read."""
        cls = scheduler_class(self.kind)
        kind = self.kind if isinstance(self.kind, str) else self.kind.__name__
        special = (reads for one, reads in _CLASS_READS.items() if cls is not None and issubclass(cls, one))
        reads = _READS[kind] if cls is None else next(special, ("warmup", "options"))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in (*reads, "kind", "interval", "name") or not value:
                continue
            if field.name != "monitor" or value != type(self).monitor:
                raise UserError(
                    f"Schedule(kind={kind!r}, {field.name}={value!r}): {kind} does not read {field.name},"
                    f" only {', '.join(reads)}; leave it out"
                )
        if absent := next((name for name in _NEEDS.get(kind, ()) if not getattr(self, name)), None):
            raise UserError(f"Schedule(kind={kind!r}): {kind} needs {absent}; give {absent}=...")
        known = set(inspect.signature(cls).parameters) - {"optimizer", "last_epoch"} if cls else set()
        if unknown := next((name for name in self.options if name not in known), None):
            what = f"Schedule(kind={kind!r}, options={{{unknown!r}: ...}})"
            raise UserError(f"{what}: there is no such argument{did_you_mean(unknown, known)}")

    @property
    def needs_until(self) -> float:
        """Fraction of the run that the schedule needs: 1 if the rate falls until the end, else 0."""
        cls = scheduler_class(self.kind)
        if cls is None:
            return float(self.kind in ("linear", "cosine", "one_cycle"))
        return float(not set(_LENGTHS).isdisjoint(inspect.signature(cls).parameters))

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Report a plateau whose metric is never logged."""
        if _waits(scheduler_class(self.kind)) and (
            reason := plan.why_never_logged(self.monitor, "val", "train", "gap")
        ):
            yield Finding("error", self.name, f"monitor={self.monitor!r}: {reason}")
        elif _waits(scheduler_class(self.kind)) and (
            reason := plan.why_other_direction(self.monitor, self.options.get("mode", "min"))
        ):
            yield Finding("warning", self.name, f"monitor={self.monitor!r}: {reason} in options")

    def attach(self, core: Host) -> None:
        """Keep the core, whose trainer knows the length of an epoch."""
        self.core_ = core

    def make_scheduler(self, optimizer: torch.optim.Optimizer, total_steps: int) -> Mapping[str, Any]:
        """Create the scheduler."""
        total = total_steps
        if self.interval == "epoch" and total > 0:
            total = math.ceil(total / self.core_.trainer.num_training_batches)
        cls = scheduler_class(self.kind)
        if _waits(cls):
            plateau = self._made(cls, optimizer, self.options)
            return {"scheduler": plateau, "interval": "epoch", "monitor": self.monitor}
        if cls is not None:
            return {"scheduler": self._of_class(cls, optimizer, total), "interval": self.interval}
        return {"scheduler": Curve(optimizer, self._course(total)), "interval": self.interval}

    def _course(self, total: int) -> Course:
        """Return f as a function of the steps done, for a run of ``total`` steps."""
        cycle = self.kind == "one_cycle"
        falls = cycle or self.kind in ("linear", "cosine")
        until = self._length("kind", 1.0, total) if falls else 0
        share = self.warmup or (0.3 if cycle else 0)
        warmup = self._length("warmup", share, total)
        if cycle:
            until = max(until - 1, 1)  # the last step is at the end of the cycle, as torch's is
            if isinstance(share, float) and share < 1:
                warmup = min(warmup, until - 1)  # in a run of a few steps
        if (falls and warmup >= until) or 0 < total < warmup:
            raise self._too_long(total)
        return Course(
            str(self.kind),
            f"Schedule(kind={self.kind!r})",
            warmup,
            self.end or (START / 1e4 if cycle else 0.0),
            self.gamma or 0.1,
            max(1, self._length("period", self.period or 1, total)),
            tuple(self._length("milestones", milestone, total) for milestone in self.milestones),
            until,
        )

    def _too_long(self, total: int) -> UserError:
        return UserError(
            f"Schedule(warmup={self.warmup}): the run has {total} {self.interval}s in all; shorten the warm-up"
        )

    def _length(self, name: str, span: float, total: int) -> int:
        """Convert a length to steps or epochs."""
        if isinstance(span, int) or span == 0:
            return int(span)
        if total < 1:
            value = getattr(self, name)
            raise UserError(
                f"Schedule({name}={value!r}): the run has no end; set the trainer's max_epochs or max_steps"
            )
        return round(span * total)

    def _made(self, cls: Any, optimizer: torch.optim.Optimizer, options: Mapping[str, Any]) -> Any:
        try:
            return cls(optimizer, **options)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(f"{self.describe()}: {error}") from error

    def _of_class(self, cls: Any, optimizer: torch.optim.Optimizer, total: int) -> Behind:
        """Return a scheduler of a class behind the warm-up, for a run of ``total`` steps."""
        warmup = self._length("warmup", self.warmup, total)
        if 0 < total <= warmup:
            raise self._too_long(total)
        known = inspect.signature(cls).parameters
        # OneCycleLR takes its length as epochs and steps_per_epoch too
        filled = {
            name: self._length("kind", 1.0, total) - warmup
            for name in _LENGTHS
            if name in known and {name, "epochs", "steps_per_epoch"}.isdisjoint(self.options)
        }
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        differ = next((index for index, rate in enumerate(rates) if rate != rates[0]), 0)
        floor = self.options.get("eta_min", 0)
        if differ and floor > min(rates):
            raise UserError(
                f"{self.describe()}: eta_min={floor} is above the rate {min(rates):.4g} of one of the optimizer's"
                " groups, which would rise to it; lower eta_min, or use the curve 'cosine', whose end is a factor"
            )
        inner = self._made(cls, optimizer, {**self.options, **filled, **self._scaled(cls, optimizer, rates)})
        if isinstance(inner, lr_scheduler.OneCycleLR) and inner.total_steps < total:
            raise UserError(
                f"{self.describe()}: its {inner.total_steps} steps are fewer than the {total} {self.interval}s of the"
                " run; leave total_steps, epochs and steps_per_epoch out"
            )
        meant = any(isinstance(value, (list, tuple)) for value in self.options.values())  # given group by group
        return Behind(inner, warmup, self.describe(), filled, (0, differ) if differ and not meant else None)

    def _scaled(self, cls: type, optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> dict[str, Any]:
        """Return the options that are rates group by group, multiplied by the factors of the groups (``lr_scale``)."""
        rate = float(optimizer.defaults.get("lr", 0.0))
        if not rate or set(rates) == {rate} or not issubclass(cls, (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)):
            return {}
        given = {name: self.options[name] for name in _RATES if isinstance(self.options.get(name), (int, float))}
        return {name: [value * (one / rate) for one in rates] for name, value in given.items()}
