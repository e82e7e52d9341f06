"""All checks, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from framework.plugin.plugin import Plugin
from framework.testing import draws, evaluation, invariance, numerics, precision, surroundings, traces
from framework.testing.case import Case
from framework.testing.result import Check, Result
from framework.testing.task import TASKS, Task

CHECKS: tuple[Check, ...] = (
    Check(
        "zero",
        "strength zero equals absence, bit for bit, unlike the example's strength",
        invariance.zero_is_absence,
    ),
    Check(
        "micro", "micro-batches give the same step as one batch, a short last step included", invariance.micro_batches
    ),
    Check("ranks", "two ranks give the same step as one process, and hold the same bits", invariance.ranks),
    Check(
        "sharded",
        "ranks with sharded parameters (fsdp2) give the same step as ranks with whole ones",
        invariance.sharded,
    ),
    Check("resume", "a resumed run equals an uninterrupted one, bit for bit", invariance.resume),
    Check("eval", "evaluation of given weights equals the bare network's, bit for bit", evaluation.evaluation),
    Check(
        "undone", "after an error, Ctrl-C or a skipped batch the weights are those from before the step", traces.undone
    ),
    Check("draws", "random draws of others do not change", draws.draws),
    Check("state", "the state loads with weights_only=True and is restored unchanged", traces.state),
    Check("norms", "BatchNorm counts one forward pass per micro-batch", traces.statistics),
    Check("logged", "a logger at every step changes no bit", surroundings.logged),
    Check("twice", "beside a second evaluation of each step, as of SAM, nothing changes", surroundings.twice),
    Check("adam", "it trains with AdamW too", surroundings.adaptive),
    Check("single", "it trains on batches of one sample", surroundings.single),
    Check("frozen", "frozen weights stay as they are, and may begin to train", surroundings.frozen),
    Check("metrics", "training metrics see the data's targets, also beside mixed ones", surroundings.metrics),
    Check("phases", "later phases come to an end", surroundings.phases),
    Check("modes", "layers train and evaluate in the modes that they have without it", surroundings.modes),
    Check("leftovers", "no hook stays on the network, and no graph is kept from step to step", surroundings.leftovers),
    Check("data", "the user's data are not changed in place", surroundings.data),
    Check("finish", "finish may be called twice", surroundings.finish),
    Check("slope", "weight_penalty_gradient is the gradient of weight_penalty", numerics.slope),
    Check("gradcheck", "the gradient is that of the objective, by central differences in float64", numerics.gradcheck),
    Check("clip", "gradients are clipped with the plugin's contribution in them", numerics.clipping),
    Check("compile", "a compiled network gives the same result as the eager one", precision.compiled),
    Check("fp16", "16-mixed has the effect of 32-true, and a skipped step leaves no trace", precision.half),
    Check("bf16", "bf16-mixed has the effect of 32-true", precision.brain_half),
    Check("fp64", "64-true computes in float64 throughout", precision.double),
)


def check_named(name: str) -> Check:
    """Return the check with a name."""
    return next(check for check in CHECKS if check.name == name)


def check_plugin(
    make: Callable[[], Plugin],
    *,
    absent: Callable[[], Plugin] | None = None,
    companions: Callable[[], Sequence[Plugin]] = tuple,
    task: Task = TASKS["images"],
    checks: Iterable[Check] = CHECKS,
) -> list[Result]:
    """Run checks on one plugin with its settings.

    Args:
        make: makes the plugin, a new one at every call.
        absent: makes it with settings at which it must equal its absence.
        companions: makes the other plugins that it needs.
        task: the task to train on.
        checks: the checks to run.
    """
    case = Case(make, absent, companions, task)
    return [check(case) for check in checks]
