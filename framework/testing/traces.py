"""Checks that a plugin leaves no trace after an interrupted step, and restores its state from a checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.data.loaders import Window
from framework.data.outcome import Outcome
from framework.engine.core import Core
from framework.errors import one_line
from framework.plugin.plugin import Plugin
from framework.testing.case import Case, isolated, train
from framework.testing.compare import demand_same_bits, same_bits
from framework.testing.result import Failed, Inapplicable

_STEP = 2  # the step that is disturbed; late enough for plugins to have a state


class _Interruption(Exception):
    """An error in the forward pass."""


class _InterruptedCore(Core):
    """Core that raises, or leaves the batch out, in one step at a chosen call of the network."""

    at_call: int | None = None
    raises: type[BaseException] | None = None
    calls = 0
    before: dict[str, Tensor]
    after: dict[str, Tensor]

    def training_step(self, window: Window, batch_idx: int) -> None:
        if self.at.index == _STEP:
            self.before = self.weights()
        elif self.at.index == _STEP + 1:
            self.after = self.weights()
        super().training_step(window, batch_idx)

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights."""
        return {name: weight.detach().clone() for name, weight in self.model.named_parameters()}

    def compute_loss(self, batch: Any) -> Outcome:
        outcome = super().compute_loss(batch)
        if self.at.index == _STEP and self.model.training:
            self.calls += 1
            if self.raises is None and self.at_call is not None:
                return Outcome(None)
            if self.raises is not None and self.calls == self.at_call:
                raise self.raises
        return outcome


def undone(case: Case) -> str:
    """Check that weights are restored after an error at a call of the network, and after a step without a loss."""
    calls = _interrupt(case, None, None).calls
    ways = [(kind, call) for kind in (_Interruption, KeyboardInterrupt) for call in sorted({1, calls})]
    for kind, call in [*ways, (None, 1)]:
        core = _interrupt(case, kind, call)
        way = f"{kind.__name__.strip('_')} in call {call} of {calls}" if kind else "a step whose loss is None"
        demand_same_bits(core.before, core.after, f"{way} leaves changed weights")
    return f"{len(ways) + 1} ways out, {calls} calls of the network a step: the same bits"


def _interrupt(case: Case, raises: type[BaseException] | None, at_call: int | None) -> _InterruptedCore:
    """Train until the error, or past the step if there is none, and return the core in that state."""
    kind = type("_InterruptedCore", (_InterruptedCore,), {"raises": raises, "at_call": at_call})
    core = case.core(case.make, kind=kind, accumulate=2, batch=8)
    assert isinstance(core, _InterruptedCore)
    try:
        train(core)
    except (_Interruption, KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C into an exit
        core.after = core.weights()
    return core


def state(case: Case) -> str:
    """Write a checkpoint, read it with ``weights_only=True``, and restore the state in a new plugin."""
    core = case.fit(case.make)
    name = case.plugin.name
    kept = _named(core, name).state_dict()
    with tempfile.TemporaryDirectory() as folder, isolated():
        path = Path(folder) / "last.ckpt"
        core.trainer.save_checkpoint(path)
        try:
            checkpoint = torch.load(path, weights_only=True)
        except Exception as error:
            raise Failed(f"the checkpoint does not load: {one_line(error)[:200]}") from None
    if not kept:
        raise Inapplicable("it has no state")
    states = [one[name] for one in checkpoint["callbacks"].values() if name in one]
    fresh = case.core(case.make)
    with isolated():
        fresh.attach_plugins()
        plugin = _named(fresh, name)
        plugin.load_state_dict(states[0])
    if not same_bits(kept, plugin.state_dict()):
        raise Failed("the restored state differs")
    return "the same bits"


def _named(core: Core, name: str) -> Plugin:
    return next(plugin for plugin in core.plugins if plugin.name == name)


def statistics(case: Case) -> str:
    """Compare the number of batches that BatchNorm has counted with and without the plugin."""
    counts = []
    for make in (None, case.make):
        core = case.fit(make, accumulate=2, batch=8, trainer={"max_epochs": 1})
        counts.append(int(core.model.get_submodule("norm").num_batches_tracked))
    if counts[0] != counts[1]:
        raise Failed(f"{counts[1]} batches counted, {counts[0]} without it")
    return f"{counts[0]} micro-batches, {counts[1]} counted"
