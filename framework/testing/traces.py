"""Checks that a plugin leaves no trace where it has no business, and takes up again what it left in a checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.data.batch import Outcome
from framework.data.loaders import Window
from framework.engine.core import Core
from framework.errors import one_line
from framework.plugin.plugin import Plugin
from framework.testing.case import Case, apart, train
from framework.testing.compare import demand_same_bits, same_bits
from framework.testing.result import Failed, Inapplicable

_STEP = 2  # the one that is disturbed: by then plugins have a state


class _Stumble(Exception):
    """An error in the forward."""


class _Stumbling(Core):
    """Raises, or leaves the batch out, in one step at a chosen call of the network."""

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
    """Raise within a step at the first and at the last call of the network, and leave a step's batches out."""
    calls = _stumble(case, None, None).calls
    ways = [(kind, call) for kind in (_Stumble, KeyboardInterrupt) for call in sorted({1, calls})]
    for kind, call in [*ways, (None, 1)]:
        core = _stumble(case, kind, call)
        way = f"{kind.__name__.strip('_')} in call {call} of {calls}" if kind else "a step whose loss is None"
        demand_same_bits(core.before, core.after, f"{way} leaves changed weights")
    return f"{len(ways) + 1} ways out, {calls} calls of the network a step: the same bits"


def _stumble(case: Case, raises: type[BaseException] | None, at_call: int | None) -> _Stumbling:
    """Train until the stumble, or past the step, and return the core as it was left."""
    kind = type("_Stumbling", (_Stumbling,), {"raises": raises, "at_call": at_call})
    core = case.core(case.make, kind=kind, accumulate=2, batch=8)
    assert isinstance(core, _Stumbling)
    try:
        train(core)
    except (_Stumble, KeyboardInterrupt, SystemExit):  # Lightning makes an exit of a Ctrl-C
        core.after = core.weights()
    return core


def state(case: Case) -> str:
    """Write a checkpoint, read it with ``weights_only=True``, and give the state to a new plugin."""
    core = case.fit(case.make)
    name = case.plugin.name
    kept = _named(core, name).state_dict()
    with tempfile.TemporaryDirectory() as folder, apart():
        path = Path(folder) / "last.ckpt"
        core.trainer.save_checkpoint(path)
        try:
            checkpoint = torch.load(path, weights_only=True)
        except Exception as error:
            raise Failed(f"the checkpoint does not load: {one_line(error)[:200]}") from None
    if not kept:
        raise Inapplicable("it keeps no state")
    states = [one[name] for one in checkpoint["callbacks"].values() if name in one]
    fresh = case.core(case.make)
    with apart():
        fresh.attach_plugins()
        plugin = _named(fresh, name)
        plugin.load_state_dict(states[0])
    if not same_bits(kept, plugin.state_dict()):
        raise Failed("the state that comes back is another")
    return "the same bits"


def _named(core: Core, name: str) -> Plugin:
    return next(plugin for plugin in core.plugins if plugin.name == name)


def statistics(case: Case) -> str:
    """Compare how many batches BatchNorm has counted with and without the plugin."""
    counts = []
    for make in (None, case.make):
        core = case.fit(make, accumulate=2, batch=8, trainer={"max_epochs": 1})
        counts.append(int(core.model.get_submodule("norm").num_batches_tracked))
    if counts[0] != counts[1]:
        raise Failed(f"{counts[1]} batches counted, {counts[0]} without it")
    return f"{counts[0]} micro-batches, {counts[1]} counted"
