"""Each file of checks is tried on the wrong plugins that its checks are to catch, and on right ones."""

from __future__ import annotations

import pytest
import torch

from framework import Core, Plugin, Step, UserError
from framework.testing import CHECKS
from plugins.norm_penalty import NormPenalty
from plugins.weight_noise import WeightNoise
from tests.wrong_plugins import CAUGHT


class Harmless(Plugin):
    """Shrinks gradients, or refuses to."""

    factor: float = 0.5
    promise: str = ""
    refuse: bool = False

    absent = ({"factor": 1.0},)

    def limits(self) -> dict[str, str]:
        return {self.promise: "so it is said"} if self.promise else {}

    def attach(self, core: Core) -> None:
        if self.refuse:
            raise UserError("Harmless(refuse=True): refused; leave it out")
        self.weights_ = list(core.model.parameters())

    def transform_gradients(self, step: Step) -> None:
        torch._foreach_mul_([weight.grad for weight in self.weights_], self.factor)


@pytest.fixture
def harmless() -> type[Plugin]:
    return Harmless


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test of ``test_<file>.py`` the checks of that file as ``own_check``, what they catch as ``wrong``."""
    file = metafunc.module.__name__.rpartition("test_")[2]
    # the check compiles a network, which takes seconds
    own = [one for one in CHECKS if one.measure.__module__ == f"framework.testing.{file}" and one.name != "compile"]
    if "wrong" in metafunc.fixturenames:
        names = {one.name for one in own}
        wrong = [kind for kind, name in CAUGHT.items() if name in names]
        metafunc.parametrize("wrong", wrong, ids=lambda kind: kind.__name__)
    if "own_check" in metafunc.fixturenames:
        metafunc.parametrize("right", [NormPenalty, WeightNoise], ids=lambda kind: kind.__name__)
        metafunc.parametrize("own_check", own, ids=str)
