"""All checks, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from framework.plugin.plugin import Plugin
from framework.testing import draws, evaluation, invariance, numerics, precision, traces
from framework.testing.case import Case
from framework.testing.result import Check, Result
from framework.testing.task import TASKS, Task

CHECKS: tuple[Check, ...] = (
    Check("zero", "strength zero equals absence, bit for bit, and the example's does not", invariance.zero_is_absence),
    Check("micro", "micro-batches give the step of one batch, a short last step included", invariance.micro_batches),
    Check("ranks", "two ranks give the step of one process, and hold the same bits", invariance.ranks),
    Check(
        "sharded",
        "ranks that share the parameters out (fsdp2) give the step of ranks that hold them",
        invariance.sharded,
    ),
    Check("resume", "a resumed run equals an uninterrupted one, bit for bit", invariance.resume),
    Check("eval", "evaluation of given weights equals the bare network's, bit for bit", evaluation.evaluation),
    Check("undone", "errors, Ctrl-C and batches left out leave the weights as before the step", traces.undone),
    Check("draws", "nobody else's random draws change", draws.draws),
    Check("state", "the state loads with weights_only=True and comes back the same", traces.state),
    Check("norms", "BatchNorm counts one forward a micro-batch", traces.statistics),
    Check("slope", "weight_penalty_gradient is the gradient of weight_penalty", numerics.slope),
    Check("gradcheck", "the gradient is that of the objective, by central differences in float64", numerics.gradcheck),
    Check("clip", "gradients are clipped with the plugin's share in them", numerics.clipping),
    Check("compile", "a compiled network gives what the eager one gives", precision.compiled),
    Check("fp16", "16-mixed has the effect of 32-true, and a skipped step leaves no trace", precision.half),
    Check("bf16", "bf16-mixed has the effect of 32-true", precision.brain_half),
    Check("fp64", "64-true works in float64 throughout", precision.double),
)


def check_named(name: str) -> Check:
    """Return the check of a name."""
    return next(check for check in CHECKS if check.name == name)


def check_plugin(
    make: Callable[[], Plugin],
    *,
    absent: Callable[[], Plugin] | None = None,
    companions: Callable[[], Sequence[Plugin]] = tuple,
    task: Task = TASKS["images"],
    checks: Iterable[Check] = CHECKS,
) -> list[Result]:
    """Try all checks on one plugin with its settings.

    Args:
        make: makes the plugin, a new one at every call.
        absent: makes it with settings at which it is to equal its absence.
        companions: makes the plugins that it needs beside it.
        task: what is trained.
        checks: the checks to try.
    """
    case = Case(make, absent, companions, task)
    return [check(case) for check in checks]
