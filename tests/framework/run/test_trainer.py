"""Lightning's refusals are raised as one line; the user's own errors stay what they are."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from framework.errors import UserError
from framework.run.trainer import one_line, refusals


def fails(error: Exception) -> None:
    with refusals():
        raise error


def test_misconfiguration_is_reported() -> None:
    with pytest.raises(UserError, match=r"^two lines$"):
        fails(MisconfigurationException("two\n  lines"))


@pytest.mark.parametrize("error", [ValueError("mine"), TypeError("mine"), KeyError("mine")])
def test_errors_of_the_users_own_are_left_alone(error: Exception) -> None:
    with pytest.raises(type(error), match="mine"):
        fails(error)


def test_value_errors_of_lightnings_own_are_reported() -> None:
    def ask() -> None:
        with refusals():
            pl.Trainer(max_epochs=1, logger=False, barebones=True, fast_dev_run=True)

    with pytest.raises(UserError, match="barebones"):
        ask()


def test_one_line() -> None:
    assert one_line(ValueError(" a\n\n b\t")) == "a b"
