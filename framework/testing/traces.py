"""Checks that a plugin leaves no trace where it has no business: evaluation, weights after errors, others' draws."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from framework.batch import Outcome, clean_target, input_of, target_of
from framework.data import Window
from framework.module import Core
from framework.plugin import Plugin
from framework.step import Step
from framework.testing.case import Case, apart, train
from framework.testing.compare import demand_same_bits, same_bits
from framework.testing.result import Failed, Inapplicable

STEP = 2  # the one that is disturbed: by then plugins have a state


def _copied(core: Core) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in core.model.state_dict().items()}


# ---- evaluation ------------------------------------------------------------------------------------------------------


class _Validations(pl.Callback):
    """Keeps the weights and the validation loss of each validation."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Tensor], float]] = []
        self._before: dict[str, Tensor] = {}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Core)
        self._before = _copied(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Core)
        after = _copied(pl_module)
        demand_same_bits(self._before, after, "validation changes the weights", excusable=False)
        self.seen.append((after, float(trainer.callback_metrics["val/loss"])))


def evaluation(case: Case) -> str:
    """Validate after every step, then give the bare network the same weights; test and predict at the end."""
    seen = _Validations()
    core = case.fit(case.make, trainer={"val_check_interval": 1, "max_epochs": 1, "callbacks": [seen]})
    for weights, loss in seen.seen:
        bare = _bare(case, weights)
        expected = _asked(bare, "validate")["val/loss"]
        if not same_bits(loss, expected):
            raise Failed(f"val/loss is {loss!r}, of the bare network {expected!r}")
    bare = _bare(case, _copied(core))
    for kind in ("test", "predict"):
        if not same_bits(_asked(core, kind), _asked(bare, kind)):
            raise Failed(f"{kind} gives something else than the bare network")
    return f"{len(seen.seen)} validations, test and predict: the same bits"


def _bare(case: Case, weights: dict[str, Tensor]) -> Core:
    core = Core(case.task.model(torch.float32, True), case.task.loss, data=case.task.data(torch.float32, 16))
    try:
        core.model.load_state_dict(weights)
    except RuntimeError as error:
        raise Failed(f"the bare network does not take the weights: {' '.join(str(error).split())}") from None
    return core


def _asked(core: Core, kind: str) -> Any:
    with apart():
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(accelerator="cpu", devices=1, enable_checkpointing=False, **quiet)
        if kind == "predict":
            return trainer.predict(core)
        (trainer.validate if kind == "validate" else trainer.test)(core, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# ---- ways out of a step ----------------------------------------------------------------------------------------------


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
        if self.at.index == STEP:
            self.before = self.weights()
        elif self.at.index == STEP + 1:
            self.after = self.weights()
        super().training_step(window, batch_idx)

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights."""
        return {name: weight.detach().clone() for name, weight in self.model.named_parameters()}

    def compute_loss(self, batch: Any) -> Outcome:
        outcome = super().compute_loss(batch)
        if self.at.index == STEP and self.model.training:
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


# ---- draws -----------------------------------------------------------------------------------------------------------


class _Order(Plugin):
    """First in the recipe: sees in which order the samples come."""

    def attach(self, core: Core) -> None:
        self.seen_: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}

    def transform_batch(self, batch: Any, step: Step) -> Any:
        key = "the order of samples", step.index, step.micro
        self.seen_.setdefault(key, (clean_target(target_of(batch)).clone(),))
        return batch


class _Draws(Plugin):
    """Last in the recipe: draws in every way there is, and looks at what the network drew."""

    def attach(self, core: Core) -> None:
        self.seen_: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}
        self.drop_ = core.model.get_submodule("drop")

    def begin_step(self, step: Step) -> None:
        self._see("a plugin's draws for the step", step, torch.rand(3, generator=step.generator(self)))
        self._see_generators("as a step begins", step)

    def transform_batch(self, batch: Any, step: Step) -> Any:
        like = torch.empty(len(input_of(batch)), 3, dtype=torch.float32)
        self._see("a plugin's draws for samples", step, step.normal(self, like), step.uniform(self, like))
        generator = step.micro_generator(self)
        self._see("a plugin's draws for the micro-batch", step, torch.rand(3, generator=generator))
        return batch

    def penalty(self, step: Step) -> None:
        self._see("the network's dropout", step, self.drop_.mask.clone())
        self._see_generators("after a forward", step)

    def after_update(self, step: Step) -> None:
        self._see_generators("after an update", step)

    def _see_generators(self, when: str, step: Step) -> None:
        numpy_state: Any = np.random.get_state()  # noqa: NPY002
        self._see(f"torch's global generator {when}", step, torch.get_rng_state())
        self._see(f"NumPy's global generator {when}", step, torch.from_numpy(numpy_state[1].copy()))
        self._see(f"Python's global generator {when}", step, torch.tensor(random.getstate()[1]))

    def _see(self, what: str, step: Step, *values: Tensor) -> None:
        # second evaluations draw the same once more
        self.seen_.setdefault((what, step.index, step.micro), values)


def draws(case: Case) -> str:
    """Compare the order of samples, a probe's draws, the network's dropout and global generators with and without."""
    seen = []
    for make in (None, case.make):
        order, probe = _Order(), _Draws()
        case.fit(make, probe, first=[order], accumulate=2, batch=8, trainer={"max_epochs": 2})
        seen.append({**order.seen_, **probe.seen_})
    for key, values in seen[0].items():
        if not same_bits(values, seen[1].get(key)):
            raise Failed(f"other than without it: {key[0]}, in step {key[1]}")
    return f"{len(seen[0])} draws: the same bits"


# ---- state -----------------------------------------------------------------------------------------------------------


def state(case: Case) -> str:
    """Write a checkpoint, read it with ``weights_only=True``, and give the state to a new plugin."""
    core = case.fit(case.make)
    name = case.plugin.name
    kept = _named(core, name).state_dict()
    file = io.BytesIO()
    with apart():
        torch.save(core.trainer._checkpoint_connector.dump_checkpoint(), file)
    file.seek(0)
    try:
        checkpoint = torch.load(file, weights_only=True)
    except Exception as error:
        raise Failed(f"the checkpoint does not load: {' '.join(str(error).split())[:200]}") from None
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


# ---- BatchNorm -------------------------------------------------------------------------------------------------------


def statistics(case: Case) -> str:
    """Compare how many batches BatchNorm has counted with and without the plugin."""
    counts = []
    for make in (None, case.make):
        core = case.fit(make, accumulate=2, batch=8, trainer={"max_epochs": 1})
        counts.append(int(core.model.get_submodule("norm").num_batches_tracked))
    if counts[0] != counts[1]:
        raise Failed(f"{counts[1]} batches counted, {counts[0]} without it")
    return f"{counts[0]} micro-batches, {counts[1]} counted"
