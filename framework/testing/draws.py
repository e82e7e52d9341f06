"""The check that a plugin does not change the random draws of others."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.data.batch import input_of, target_of
from framework.data.mixed import clean_target
from framework.plugin.host import Host
from framework.plugin.plugin import Plugin
from framework.plugin.step import Step
from framework.testing.case import Case
from framework.testing.compare import same_bits
from framework.testing.result import Failed


class _Order(Plugin):
    """First plugin of the recipe: records the order of samples."""

    def attach(self, core: Host) -> None:
        self.seen_: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}

    def transform_batch(self, batch: Any, step: Step) -> Any:
        key = "the order of samples", step.index, step.micro
        self.seen_.setdefault(key, (clean_target(target_of(batch)).clone(),))
        return batch


class _Draws(Plugin):
    """Last plugin of the recipe: draws in every possible way, and records what the network drew."""

    def attach(self, core: Host) -> None:
        self.seen_: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}
        self.drop_: Any = core.model.get_submodule("drop")

    def begin_step(self, step: Step) -> None:
        self._record("a plugin's draws for the step", step, torch.rand(3, generator=step.generator(self)))
        self._record_generators("as a step begins", step)

    def transform_batch(self, batch: Any, step: Step) -> Any:
        like = torch.empty(len(input_of(batch)), 3, dtype=torch.float32)
        self._record("a plugin's draws for samples", step, step.normal(self, like), step.uniform(self, like))
        generator = step.micro_generator(self)
        self._record("a plugin's draws for the micro-batch", step, torch.rand(3, generator=generator))
        return batch

    def penalty(self, step: Step) -> None:
        self._record("the network's dropout", step, self.drop_.mask.clone())
        self._record_generators("after a forward", step)

    def after_update(self, step: Step) -> None:
        self._record_generators("after an update", step)

    def _record_generators(self, when: str, step: Step) -> None:
        numpy_state: Any = np.random.get_state()  # noqa: NPY002
        self._record(f"torch's global generator {when}", step, torch.get_rng_state())
        self._record(f"NumPy's global generator {when}", step, torch.from_numpy(numpy_state[1].copy()))
        self._record(f"Python's global generator {when}", step, torch.tensor(random.getstate()[1]))

    def _record(self, what: str, step: Step, *values: Tensor) -> None:
        # second evaluations repeat the same draws
        self.seen_.setdefault((what, step.index, step.micro), values)


def draws(case: Case) -> str:
    """Compare order of samples, a probe's draws, dropout and global generators with and without the plugin."""
    seen = []
    for make in (None, case.make):
        order, probe = _Order(), _Draws()
        case.fit(make, probe, first=[order], accumulate=2, batch=8, trainer={"max_epochs": 2})
        seen.append({**order.seen_, **probe.seen_})
    for key, values in seen[0].items():
        if not same_bits(values, seen[1].get(key)):
            raise Failed(f"changed by the plugin: {key[0]}, in step {key[1]}")
    return f"{len(seen[0])} draws: the same bits"
