"""Lint a recipe: find what is wrong or odd about it before training."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pytorch_lightning import Callback
from pytorch_lightning.utilities import rank_zero_only

from framework.data.means import is_uneven, option_of
from framework.engine.core import Core
from framework.errors import UserError, some
from framework.ops.patterns import is_weight
from framework.plugin.facts import Facts
from framework.plugin.finding import Finding, LintWarning
from framework.plugin.hooks import NOTICES
from framework.plugin.plan import Plan
from framework.recipe.callbacks import refused_callbacks
from framework.recipe.recipe import Recipe

# the notices in which Lightning lets a callback log what others can monitor
_LOGGING = tuple(
    name
    for name in NOTICES
    if name.startswith(("on_train_", "on_validation_")) and ("_epoch_" in name or "_batch_" in name)
)


def lint(recipe: Recipe, core: Core, options: Mapping[str, Any]) -> list[Finding]:
    """Return the findings on a recipe, errors first.

    Args:
        recipe: the recipe, edits applied.
        core: the recipe's core, with its plugins attached.
        options: the Trainer's options.
    """
    plan = plan_of(recipe, core, options)
    refused = (Finding("error", name, reason) for name, reason in refused_callbacks(callbacks_of(recipe, options)))
    own = (_monitor, _means, _mixing, _decay_of_biases, _moved_in_vain, _idle)
    found = [*refused, *itertools.chain(*(rule(plan) for rule in own), core.answers.collect("lint", plan))]
    return sorted(found, key=lambda finding: finding.severity)


def plan_of(recipe: Recipe, core: Core, options: Mapping[str, Any]) -> Plan:
    """Return what is known of a recipe's run before training.

    Args:
        recipe: the recipe, edits applied.
        core: its core, plugins attached.
        options: the Trainer's options.
    """
    callbacks = callbacks_of(recipe, options)
    listening = any(
        getattr(type(callback), notice, None) is not getattr(Callback, notice)
        for callback in callbacks
        for notice in _LOGGING
    )
    return Plan(
        core,
        options,
        data=recipe.data,
        monitor=recipe.monitor,
        mode=recipe.mode,
        metrics=recipe.metrics,
        open_tags=type(core) is not Core or listening,
    )


def callbacks_of(recipe: Recipe, options: Mapping[str, Any]) -> list[Callback]:
    """Return the callbacks of a recipe, plugins among them, and of the Trainer's options."""
    given = options.get("callbacks") or []
    return [*recipe.plugins, *(given if isinstance(given, list) else [given])]


def raise_or_warn(findings: Sequence[Finding], where: str) -> None:
    """Raise the first error among the findings, or else issue all warnings.

    Args:
        findings: errors first, as :func:`lint` returns them.
        where: the recipe's name, which is printed as the place of a warning.

    Raises:
        UserError: for the first error, with the number of errors.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        more = f" (the first of {len(errors)} errors: see explain)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}")
    for finding in findings:
        _warn(str(finding), where)


@rank_zero_only
def _warn(message: str, where: str) -> None:
    # with a line of the framework as its place, Python would print that line's source code
    warnings.warn_explicit(message, LintWarning, where, 1)


# ---- rules over the recipe and the facts that plugins declare --------------------------------------------------------


def _monitor(plan: Plan) -> Iterator[Finding]:
    tag = plan.monitor
    if plan.validations == 0 and tag.startswith("val/"):
        return  # the default monitor, in a run without a best epoch
    if reason := plan.why_never_logged(tag, "val", "train", "gap"):
        yield Finding("error", "recipe", f"monitor={tag!r}: {reason}")
    elif reason := plan.why_other_direction(tag, plan.mode):
        yield Finding("warning", "recipe", f"monitor={tag!r}: {reason}")


def _means(plan: Plan) -> Iterator[Finding]:
    if option_of(plan.core.loss, "reduction") == "sum":
        message = (
            "reduction='sum': J then grows with the number of samples, so that micro-batches, ranks and the batch size"
            " of evaluation change its value; use reduction='mean', and a higher learning rate"
        )
        yield Finding("warning", "loss", message)
    mixers = " and ".join(plugin.name for plugin in plan.core.plugins if plugin.mixes_targets)
    if mixers and is_uneven(plan.core.loss):
        message = (
            "mixes targets of a loss with class weights or ignored targets, whose mean over a mixed batch is not"
            " that of its micro-batches; leave one of them out, or train without accumulation on one device"
        )
        yield Finding("warning", mixers, message)


def _mixing(plan: Plan) -> Iterator[Finding]:
    mixers = [plugin for plugin in plan.core.plugins if plugin.mixes_targets and not _changes_nothing(plugin, plan)]
    names = " and ".join(plugin.name for plugin in mixers)
    if len(mixers) > 1:
        message = (
            "both mix targets: a sample becomes a mixture of up to four; remove one, or halve the probability of each"
        )
        yield Finding("warning", names, message)
    if mixers and (smoothing := _label_smoothing(plan.core.loss)):
        message = f"mixes targets that the loss smooths as well (label_smoothing={smoothing:g}); remove one"
        yield Finding("warning", names, message)


def _label_smoothing(loss: Callable[..., Any] | None) -> float:
    options = loss.keywords if isinstance(loss, functools.partial) else {}
    return float(options.get("label_smoothing", getattr(loss, "label_smoothing", 0.0)))


def _decay_of_biases(plan: Plan) -> Iterator[Finding]:
    found: dict[Any, str] = {}
    for prefix, layer in plan.core.model.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if plan.decays.get(parameter) and not is_weight(layer, name, parameter):
                found.setdefault(parameter, f"{prefix}.{name}" if prefix else name)
    if found:
        who = " and ".join(plugin.name for plugin in plan.core.answers.of("group_parameters"))
        message = f"weight_decay on biases and norm gains ({some(found.values())}), which need none; decay the rest"
        yield Finding("warning", who, message)


def _moved_in_vain(plan: Plan) -> Iterator[Finding]:
    for plugin in plan.core.plugins:
        for other in plan.core.plugins:
            for setting in other.read_once:
                if f"{other.name}.{setting}" in plugin.moves:
                    message = (
                        f"moves {other.name}.{setting}, which is read only before the first step, so without effect"
                    )
                    yield Finding("error", plugin.name, f"{message}; remove it (--without {plugin.name})")


def _idle(plan: Plan) -> Iterator[Finding]:
    for plugin in plan.core.plugins:
        if settings := _changes_nothing(plugin, plan):
            zeros = ", ".join(f"{name}={value!r}" for name, value in settings.items())
            yield Finding("warning", plugin.name, f"changes nothing with {zeros}; remove it (--without {plugin.name})")


def _changes_nothing(plugin: Facts, plan: Plan) -> Mapping[str, Any] | None:
    """Return the settings of zero strength that make a plugin equal to its absence, None if there are none."""
    examples, absent = plugin.examples, list(plugin.absent)
    for example, zeros in zip(examples, absent * len(examples) if len(absent) == 1 else absent, strict=False):
        if not zeros or any(value != 0 for value in zeros.values()):
            continue
        # an example of one kind says nothing about another kind
        kind = example.get("kind", getattr(type(plugin), "kind", None))
        if all(getattr(plugin, name, None) == value for name, value in {"kind": kind, **zeros}.items()):
            moved = {f"{plugin.name}.{name}" for name in zeros}
            if not any(moved.intersection(other.moves) for other in plan.core.plugins):
                return zeros
    return None
