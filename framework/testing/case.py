"""``Case``: a plugin with the settings to check, and the small training runs that checks make with it."""

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
    """Gradient descent with momentum, linear in the gradients, so that an error in one shows in the weights."""

    def make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Make the optimizer."""
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One plugin with one choice of settings.

    Args:
        make: makes the plugin, a new one at every call.
        absent: makes it with settings at which it must equal its absence; None if there are none.
        companions: makes the other plugins that it needs.
        task: the task to train on.
    """

    make: Callable[[], Plugin]
    absent: Callable[[], Plugin] | None = None
    companions: Callable[[], Sequence[Plugin]] = tuple
    task: Task = TASKS["images"]

    def __str__(self) -> str:
        return " + ".join(plugin.describe() for plugin in (self.plugin, *self.companions()))

    @functools.cached_property
    def plugin(self) -> Plugin:
        """A plugin outside of any run, for what does not depend on one."""
        return self.make()

    @property
    def limits(self) -> Mapping[str, str]:
        """Reason why a check cannot hold, by name of the check, of the plugin and its companions."""
        limits: dict[str, str] = {}
        for plugin in (*self.companions(), self.plugin):
            limits.update(plugin.limits())
        return limits

    def overrides(self, *hooks: str) -> bool:
        """Return True if the plugin implements one of these hook points."""
        return any(overrides(self.plugin, hook) for hook in hooks)

    def plugins(self, make: Callable[[], Plugin] | None) -> list[Plugin]:
        """Return the plugin that ``make`` makes and its companions, in an order that satisfies their relations."""
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
        """Return a core with the plugin that ``make`` makes, or without a plugin.

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
        """Train a core and return it; for the arguments see :meth:`core` and :func:`train`."""
        options = how.pop("trainer", {})
        with isolated():
            return train(self.core(make, *extra, **how), **options)


def train(core: Core, **options: Any) -> Core:
    """Train a core, by default for two epochs of three steps, the last one short, with a validation after each.

    Args:
        core: the core.
        **options: the Trainer's options, and ``ckpt_path``, a checkpoint to resume from.
    """
    options = {**_TRAINER, **options}
    callbacks, path = options.pop("callbacks", []), options.pop("ckpt_path", None)
    with isolated():
        trainer = pl.Trainer(**options, callbacks=[*callbacks, *as_callbacks(core.plugins)])
        trainer.fit(core, ckpt_path=path)
    return core


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Context manager that isolates a training run from global state.

    Global random generators are seeded, and restored at the end, as is the Ctrl-C handler that Lightning replaces. Logs
    and warnings are hidden, since the output of a check is its result.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - the generator that plugins may use
    disabled, threads = logging.root.manager.disable, torch.get_num_threads()
    handler, main = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()
    torch.default_generator.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)  # ranks are forked, and threads do not speed up small networks
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
        settings: settings to check instead of the examples; they override those of the first example.

    Raises:
        UserError: if an example is not as :class:`framework.Plugin` describes.
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
            case.plugin  # noqa: B018 - raises if it cannot be made
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
