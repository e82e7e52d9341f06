"""What a class of Lightning's has written itself."""

from __future__ import annotations

import pytorch_lightning as pl
from torch import nn

from framework.data.modules import is_datamodule, overridden


class Mine(pl.LightningDataModule):
    def setup(self, stage: str) -> None:
        pass


class Further(Mine):
    pass


def test_data_modules() -> None:
    assert is_datamodule(Further()) and not is_datamodule(nn.Linear(1, 1))
    assert overridden(Further(), "setup") and not overridden(Further(), "prepare_data")
    given = Mine()
    given.prepare_data = lambda: None  # type: ignore[method-assign]
    assert overridden(given, "prepare_data") and not overridden(given, "no_such_hook")
