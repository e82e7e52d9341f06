"""Where a LightningModule's batches come from: the recipe's data, a data module, or the module itself."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader

from framework.data.data import Data
from framework.data.modules import overridden
from framework.errors import UserError


class Sources:
    """The user's loaders, and the hooks by which batches are moved to a device.

    Args:
        module: the user's module.
        data: the recipe's data, None if the module has its own.

    Attributes:
        datamodule: the user's data module, None if there is none.
    """

    def __init__(self, module: Any, data: Data | None) -> None:
        self._module, self._data = module, data
        self.datamodule: Any = None if data is None else data.datamodule
        self._moves: list[Any] = [None, None, None]

    @property
    def prepares_on_each_node(self) -> bool:
        """Whether ``prepare_data`` is called on each machine or on the first one only."""
        sources = [one for one in (self.datamodule, self._module) if one is not None]
        return all(one.prepare_data_per_node for one in sources)

    def prepare(self) -> None:
        """Let data module and module prepare their data."""
        for one in (self.datamodule, self._module):
            if one is not None and overridden(one, "prepare_data"):
                one.prepare_data()

    def set_up(self, trainer: Any, stage: str) -> None:
        """Attach the data module to the Trainer and set it up, and find the hooks that move batches."""
        if self.datamodule is not None:
            self.datamodule.trainer = trainer
            self.datamodule.setup(stage)
        hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        for place, hook in enumerate(hooks):
            owners = [one for one in (self.datamodule, self._module) if one is not None and overridden(one, hook)]
            self._moves[place] = getattr(owners[0], hook) if owners else None

    def tear_down(self, stage: str) -> None:
        """Tear the data module down."""
        if self.datamodule is not None:
            self.datamodule.teardown(stage)

    def own(self, part: str) -> Data | None:
        """Return the recipe's data if these hold the samples of a part, which the framework makes batches of."""
        data = self._data
        return None if data is None or getattr(data, part) is None or data.is_ready(part) else data

    def loaders(self, part: str) -> Any:
        """Return the user's loaders of a part, None if nobody has any.

        Args:
            part: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.
        """
        given = getattr(self._data, part, None)
        if given is not None:
            return given
        for one in (self.datamodule, self._module):
            if one is not None and overridden(one, f"{part}_dataloader"):
                return getattr(one, f"{part}_dataloader")()
        return None

    def training_loader(self) -> Any:
        """Return the user's training loader.

        Raises:
            UserError: if there is none, or several.
        """
        loader, name = self.loaders("train"), type(self._module).__name__
        if loader is None:
            raise UserError(f"{name} has no training data: give Recipe(data=...), or write {name}.train_dataloader")
        if isinstance(loader, (CombinedLoader, dict, list, tuple)):
            raise UserError(f"{name}: several training loaders; give one loader whose batch is a mapping")
        return loader

    def move(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to a device by the hooks of data module and module."""
        before, transfer, after = self._moves
        if before is not None:
            batch = before(batch, dataloader_idx)
        if transfer is not None:
            batch = transfer(batch, device, dataloader_idx)
        elif device.type != "cpu":
            batch = self._module.transfer_batch_to_device(batch, device, dataloader_idx)
        return batch if after is None else after(batch, dataloader_idx)
