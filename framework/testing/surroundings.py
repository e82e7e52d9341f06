"""Checks of a plugin among others: loggers, optimizers, second evaluations, and what it leaves behind."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.optim import Optimizer
from torchmetrics import Metric

from framework.data.batch import replace, target_of
from framework.data.mixed import MixedTarget, clean_target
from framework.engine.core import Core
from framework.plugin.observe import Observers
from framework.plugin.plugin import Plugin
from framework.plugin.step import Step
from framework.testing.case import Case, train
from framework.testing.compare import demand_same_bits, same_bits
from framework.testing.result import Failed, Inapplicable

_PHASES = 8
_SOME_TENSORS = 8  # with a graph that a run may keep, such as a last loss


class _Twice(Plugin):
    """Evaluates each step a second time at the same weights, as SAM does at others."""

    def second_gradient(self, step: Step, again: Callable[[Callable[[], None]], None]) -> None:
        again(_nothing)


def _nothing() -> None:
    """Edit no weight."""


class _Adaptive(Plugin):
    """AdamW, which keeps a state for each weight."""

    def make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.0)


def logged(case: Case) -> str:
    """Compare a run that logs every step with one that logs nothing."""
    quiet = case.fit(case.make)
    with tempfile.TemporaryDirectory() as folder:
        told = case.fit(case.make, trainer={"logger": CSVLogger(folder), "log_every_n_steps": 1})
    return demand_same_bits(_weights(quiet), _weights(told), "with a logger at every step")


def twice(case: Case) -> str:
    """Compare a run whose steps are evaluated a second time, at the same weights, with one without."""
    if case.overrides("second_gradient") or any(_answers(one, "second_gradient") for one in case.companions()):
        raise Inapplicable("it evaluates a second time itself")
    once = case.fit(case.make, accumulate=2, batch=8)
    again = case.fit(case.make, _Twice(), accumulate=2, batch=8)
    return demand_same_bits(_weights(once), _weights(again), "beside a second evaluation of each step")


def adaptive(case: Case) -> str:
    """Train with another optimizer than gradient descent, and resume."""
    if case.overrides("make_optimizer"):
        raise Inapplicable("it makes the optimizer")
    core = case.fit(case.make, _Adaptive())
    _demand_finite(core, "under AdamW")
    return "finite weights"


def single(case: Case) -> str:
    """Train on batches of one sample."""
    core = case.fit(case.make, batch=1, noisy=False, trainer={"max_epochs": 1, "limit_train_batches": 5})
    _demand_finite(core, "on batches of one sample")
    return "5 steps, finite weights"


def frozen(case: Case) -> str:
    """Train with all weights frozen but those of the last layer."""
    core = case.core(case.make)
    before = {}
    for name, weight in core.model.named_parameters():
        if "head" not in name.split("."):
            weight.requires_grad_(False)
            before[name] = weight.detach().clone()
    train(core)
    after = {name: weight.detach() for name, weight in core.model.named_parameters() if name in before}
    text = demand_same_bits(before, after, "frozen weights change")
    if isinstance(core.trainer.optimizers[0], torch.optim.LBFGS):  # which takes one group
        return text
    late = case.core(case.make)
    for name, weight in late.model.named_parameters():
        weight.requires_grad_("head" in name.split("."))
    train(late, callbacks=[_Thaws()])
    _demand_finite(late, "once frozen weights train")
    return text


class _Thaws(pl.Callback):
    """Lets all weights train from the second epoch on, as fine-tuning does."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            late = [weight.requires_grad_() for weight in pl_module.parameters() if not weight.requires_grad]
            trainer.optimizers[0].add_param_group({"params": late})


def metrics(case: Case) -> str:
    """Compare the targets that a training metric sees, beside a plugin that mixes targets, with those of the data."""
    mixes = case.plugin.mixes_targets or any(one.mixes_targets for one in case.companions())
    counts = []
    for make in (None, case.make):
        extra = [] if mixes and make is not None else [_Mixes()]
        seen = _Targets()
        core = case.fit(make, *extra, metrics={"targets": seen}, trainer={"max_epochs": 1})
        counts.append({tag: value for tag, value in core.recorder.latest.items() if tag.endswith("/targets")})
    if counts[0] != counts[1]:
        raise Failed(f"metrics see other targets than those of the data ({counts[1]}, {counts[0]}): use MixedTarget")
    return "the targets of the data"


class _Mixes(Plugin):
    """Mixes each target with that of the next sample."""

    def transform_batch(self, batch: Any, step: Step) -> Any:
        target = target_of(batch)
        clean = clean_target(target)
        partner = torch.arange(len(clean)).roll(1)
        return replace(batch, target=MixedTarget.of(target).mix(partner, 0.5, "mixes"))


class _Targets(Metric):
    """A number that depends on which targets were seen; each may be seen several times, as by LBFGS."""

    total: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Add targets."""
        self.total += (target.double() + 1).square().sum()
        self.count += len(target)

    def compute(self) -> torch.Tensor:
        """Return the number."""
        return self.total / self.count


def phases(case: Case) -> str:
    """Ask for later phases until there is none."""
    if not case.overrides("next_phase"):
        raise Inapplicable("it has no later phase")
    core = case.fit(case.make)
    for count in range(_PHASES + 1):
        if core.answers.sole("next_phase", core) is None:
            return f"{count} later phases"
    raise Failed(f"it asks for more than {_PHASES} later phases: a run would never end")


def modes(case: Case) -> str:
    """Compare the modes of all layers, in every training step and at the end, with those of a run without it."""
    seen = []
    for make in (None, case.make):
        watch = _Modes()
        core = case.fit(make, trainer={"callbacks": [watch]})
        seen.append([*watch.seen, _modes_of(core.model)])
    if seen[0][-1].keys() != seen[1][-1].keys():
        raise Inapplicable("it wraps the network")
    for place, (bare, own) in enumerate(zip(*seen, strict=False)):
        changed = [name for name in bare if bare[name] != own.get(name, bare[name])]
        if changed:
            when = "at the end" if place == len(seen[0]) - 1 else f"in step {place}"
            raise Failed(f"{when} the mode of {changed[0] or 'the network'!r} is another: put back what was before")
    return f"{len(seen[1])} times the same modes"


class _Modes(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, bool]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.seen.append(_modes_of(pl_module.model))  # type: ignore[arg-type]


def _modes_of(model: nn.Module) -> dict[str, bool]:
    return {name: layer.training for name, layer in model.named_modules()}


def leftovers(case: Case) -> str:
    """Look for hooks that act on the network after the run, and for hooks and graphs that grow with its length."""
    counts = []
    for epochs in (1, 4):
        core = case.fit(case.make, noisy=False, trainer={"max_epochs": epochs})
        gc.collect()
        graphs = sum(1 for one in gc.get_objects() if type(one) is torch.Tensor and one.grad_fn is not None)
        counts.append((len(_hooks(core.model)), graphs))
    (hooks, graphs), (later, grown) = counts
    if later > hooks:
        raise Failed(f"{hooks} hooks on the network after 1 epoch, {later} after 4: register them once, in attach")
    if grown > graphs + _SOME_TENSORS:
        raise Failed(f"{graphs} tensors with a graph after 1 epoch, {grown} after 4: detach what is kept")
    assert core.data is not None
    x = core.data.train[0]
    outputs = []
    for keep in (True, False):
        for kept, key in _hooks(core.model) if not keep else ():
            del kept[key]
        with torch.no_grad():
            outputs.append([core.model.train(mode)(x) for mode in (True, False)])
    if not same_bits(*outputs):
        raise Failed("a hook acts on the network after the run: use observe, or remove it in finish")
    return f"{later} hooks, {grown} tensors with a graph"


def _hooks(model: nn.Module) -> list[tuple[dict[int, Any], int]]:
    """Return the hooks on a network that are not the framework's own: where each is kept, and its key there."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    places: list[dict[int, Any]] = [getattr(layer, kind) for layer in model.modules() for kind in kinds]
    return [(kept, key) for kept in places for key, hook in kept.items() if not Observers.owns(hook)]


def data(case: Case) -> str:
    """Compare the user's data after the run with those from before."""
    core = case.fit(case.make)
    fresh = case.task.data(torch.float32, 16)
    assert core.data is not None
    for part in ("train", "val", "test"):
        if not same_bits(list(getattr(core.data, part)), list(getattr(fresh, part))):
            raise Failed(f"the {part} part of the user's data is changed in place: change a copy")
    return "unchanged"


def finish(case: Case) -> str:
    """Call ``finish`` a second time, as after an error in it, and compare the weights."""
    if not case.overrides("finish"):
        raise Inapplicable("it has nothing to finish")
    core = case.fit(case.make)
    core.answers.notify("finish", core)
    before = _weights(core)
    core.answers.notify("finish", core)
    return demand_same_bits(before, _weights(core), "a second finish")


def _answers(plugin: Plugin, hook: str) -> bool:
    return getattr(type(plugin), hook) is not getattr(Plugin, hook)


def _weights(core: Core) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in core.model.named_parameters()}


def _demand_finite(core: Core, when: str) -> None:
    for name, weight in core.model.named_parameters():
        if not torch.isfinite(weight).all():
            raise Failed(f"{name} is not finite {when}")
