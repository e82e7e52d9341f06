"""What plugins may ask of the core is what the core has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from framework.engine.core import Core
from framework.plugin import Plugin
from framework.plugin.answers import Answers
from framework.plugin.host import Again, Answering, Host

CoreOf = Callable[..., Core]


def members(protocol: type) -> dict[str, Any]:
    """Return what a protocol asks for: methods, properties, and attributes as None."""
    asked = dict.fromkeys(vars(protocol).get("__annotations__", {}))
    asked |= {name: value for name, value in vars(protocol).items() if not name.startswith("_") or name == "__call__"}
    return {name: value for name, value in asked.items() if name != "__annotations__"}


def lacking(thing: Any, protocol: type) -> set[str]:
    """Return the names that a thing lacks; asking for one without a trainer is Lightning's own error."""
    names = set()
    for name in members(protocol):
        try:
            getattr(thing, name)
        except RuntimeError:
            assert name == "trainer"
        except AttributeError:
            names.add(name)
    return names


def test_the_core_has_what_plugins_may_ask(core_of: CoreOf) -> None:
    core = core_of(Plugin())
    assert {"model", "data", "observe", "answers", "again", "device", "trainer", "__call__"} <= members(Host).keys()
    assert lacking(core, Host) == set()
    assert lacking(core.again, Again) == set()
    assert lacking(core.answers, Answering) == set()
    assert lacking(object(), Host) == members(Host).keys()


@pytest.mark.parametrize("protocol", [Host, Again, Answering])
def test_methods_take_the_same_arguments(core_of: CoreOf, protocol: type) -> None:
    core = core_of(Plugin())
    one = {Host: core, Again: core.again, Answering: core.answers}[protocol]
    for name, asked in members(protocol).items():
        if inspect.isfunction(asked) and name != "__call__":
            wanted = list(inspect.signature(asked).parameters.values())[1:]
            given = list(inspect.signature(getattr(one, name)).parameters.values())
            assert [(p.name, p.kind, p.default) for p in given] == [(p.name, p.kind, p.default) for p in wanted], name


def test_answers_are_the_plugins_that_answer(core_of: CoreOf) -> None:
    class Begins(Plugin):
        def begin_step(self, step: Any) -> None: ...

    core = core_of(Plugin(name="silent"), one := Begins())
    assert isinstance(core.answers, Answers)
    assert list(core.answers.of("begin_step")) == [one]
    assert list(core.answers.of("penalty")) == []


def test_plugins_get_the_core_as_their_host(core_of: CoreOf) -> None:
    class Asks(Plugin):
        def attach(self, core: Host) -> None:
            self.asked_ = (core.model, core.loss, core.data, core.at, core.edits, core.accumulate, list(core.plugins))

    core = core_of(asks := Asks(), accumulate=3)
    core.attach_plugins()
    assert asks.asked_ == (core.model, core.loss, core.data, core.at, core.edits, 3, [asks])
