"""A plugin with the settings to check it with, and the small runs that checks make of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from framework.engine.core import Core
from framework.engine.notices import as_callbacks
from framework.errors import UserError, did_you_mean
from framework.plugin.plugin import Plugin, overrides
from framework.plugin.relations import check_relations
from framework.testing.task import TASKS, Task

_TRAINER: dict[str, Any] = {
    "max_epochs": 2,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "accelerator": "cpu",
    "devices": 1,
}


class Descent(Plugin):
    """Gradient descent with momentum: linear in the gradients, so that a wrong one moves the weights by as much."""

    def make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimizer."""
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One plugin with one choice of settings.

    Args:
        make: makes the plugin, a new one at every call.
        absent: makes it with settings at which it is to equal its absence; None where nothing does.
        companions: makes the plugins that it needs beside it.
        task: what is trained.
    """

    make: Callable[[], Plugin]
    absent: Callable[[], Plugin] | None = None
    companions: Callable[[], Sequence[Plugin]] = tuple
    task: Task = TASKS["images"]

    def __str__(self) -> str:
        return " + ".join(plugin.describe() for plugin in (self.plugin, *self.companions()))

    @functools.cached_property
    def plugin(self) -> Plugin:
        """A plugin to ask for what does not depend on a run."""
        return self.make()

    @property
    def limits(self) -> Mapping[str, str]:
        """What cannot hold, by check: of the plugin and of those beside it."""
        limits: dict[str, str] = {}
        for plugin in (*self.companions(), self.plugin):
            limits.update(plugin.limits())
        return limits

    def overrides(self, *hooks: str) -> bool:
        """Tell whether the plugin answers at one of these hook points."""
        return any(overrides(self.plugin, hook) for hook in hooks)

    def plugins(self, make: Callable[[], Plugin] | None) -> list[Plugin]:
        """Return what ``make`` makes and the companions, in an order that their relations allow."""
        companions = list(self.companions())
        if make is None:
            return companions
        listed = [make(), *companions]
        try:
            check_relations(listed)
        except UserError:
            listed = [*companions, make()]
            check_relations(listed)
        return listed

    def core(self, make: Callable[[], Plugin] | None, *extra: Plugin, first: Sequence[Plugin] = (), **how: Any) -> Core:
        """Return a core with the plugin that ``make`` makes, or without it.

        Args:
            make: :attr:`make`, :attr:`absent`, or None to leave the plugin out.
            *extra: plugins to place last.
            first: plugins to place first.
            **how: ``noisy`` and ``dtype`` of the network, ``batch`` and ``accumulate``, ``kind`` of core, and further
                arguments of the core.
        """
        dtype = how.pop("dtype", torch.float32)
        kind = how.pop("kind", Core)
        plugins = [*first, *self.plugins(make), *extra]
        if not any(overrides(plugin, "make_optimizer") for plugin in plugins):
            plugins.append(Descent())
        model = self.task.model(dtype, how.pop("noisy", True))
        data = self.task.data(dtype, how.pop("batch", 16))
        core: Core = kind(model, self.task.loss, plugins=plugins, data=data, **how)
        return core

    def fit(self, make: Callable[[], Plugin] | None, *extra: Plugin, **how: Any) -> Core:
        """Train and return a core, see :meth:`core` and :func:`train` for the arguments."""
        options = how.pop("trainer", {})
        with apart():
            return train(self.core(make, *extra, **how), **options)


def train(core: Core, **options: Any) -> Core:
    """Train a core, by default for two epochs of three steps, the last one short, with a validation after each.

    Args:
        core: what to train.
        **options: the Trainer's options, and ``ckpt_path``, where to go on from.
    """
    options = {**_TRAINER, **options}
    callbacks, path = options.pop("callbacks", []), options.pop("ckpt_path", None)
    with apart():
        trainer = pl.Trainer(**options, callbacks=[*callbacks, *as_callbacks(core.plugins)])
        trainer.fit(core, ckpt_path=path)
    return core


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Keep a run apart from what goes on around it.

    Global generators start from the same state and are put back, a Ctrl-C handler that Lightning replaces as well;
    Lightning and warnings are silent: what a check has to tell is its result.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - the one plugins may touch
    disabled, threads = logging.root.manager.disable, torch.get_num_threads()
    handler, main = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()
    torch.default_generator.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)  # ranks are forked, and small networks gain nothing by threads
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
        logging.disable(disabled)
        torch.set_num_threads(threads)
        if main:
            signal.signal(signal.SIGINT, handler)


def cases_of(kind: type[Plugin], settings: Mapping[str, Any] | None = None) -> list[Case]:
    """Return a case for each example of a plugin class.

    Args:
        kind: the class.
        settings: settings to check instead, on top of the first example.

    Raises:
        UserError: where an example is not what :class:`framework.Plugin` says.
    """
    examples, absent = list(kind.examples), list(kind.absent)
    if len(absent) <= 1:
        absent = [*absent, None][:1] * len(examples)
    if len(absent) != len(examples):
        raise UserError(
            f"{kind.__name__}.absent has {len(absent)} entries for {len(examples)} examples; give one for each, or one"
        )
    if settings is not None:
        examples, absent = [{**examples[0], **settings}], absent[:1]
    cases = [_case(kind, example, zero) for example, zero in zip(examples, absent, strict=True)]
    for case in cases:
        try:
            case.plugin  # noqa: B018 - made, to see that it can be
        except TypeError as error:
            raise UserError(f"{kind.__name__}.examples: {error}; give the settings that it needs") from error
    return cases


def _case(kind: type[Plugin], example: Mapping[str, Any], zero: Mapping[str, Any] | None) -> Case:
    chosen = {name: value for name, value in example.items() if name not in ("in", "with")}
    task = example.get("in", "images")
    if task not in TASKS:
        raise UserError(f"{kind.__name__}.examples: there is no task {task!r}{did_you_mean(task, TASKS)}")
    return Case(
        functools.partial(kind, **chosen),
        None if zero is None else functools.partial(kind, **{**chosen, **zero}),
        functools.partial(_companions, example.get("with", {})),
        TASKS[task],
    )


def _companions(wanted: Mapping[str, Mapping[str, Any]]) -> list[Plugin]:
    from framework.plugin.registry import find_plugin

    return [find_plugin(name)(**settings) for name, settings in wanted.items()]
