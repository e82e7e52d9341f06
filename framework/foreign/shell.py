"""A core around somebody's LightningModule: its attributes, its set-up and its data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning.trainer.connectors.data_connector import _process_dataloader
from pytorch_lightning.trainer.states import RunningStage, TrainerFn
from pytorch_lightning.utilities.data import extract_batch_size

from framework.data.loaders import Window
from framework.data.modules import overridden
from framework.data.ready import WindowLoader
from framework.engine.core import Core
from framework.foreign.hooks import tell
from framework.foreign.sources import Sources
from framework.foreign.view import TrainerView


class Shell(Core):
    """The part of :class:`framework.foreign.core.Foreign` outside of steps.

    Attributes:
        sources: the user's loaders.
    """

    sources: Sources
    _clip: tuple[float | None, str | None]
    _has_layers: bool

    # ---- the module behind the core ----------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "_current_fx_name" and "_modules" in self.__dict__ and "model" in self._modules:
            self.model.__dict__[name] = value  # self.log of the module asks which hook it is called in

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # callbacks and loggers look for attributes of the user's module
            modules = self.__dict__.get("_modules", {})
            if "model" not in modules or name.startswith("__"):
                raise
            return getattr(modules["model"], name)

    @property
    def hparams(self) -> Any:
        """The module's hyperparameters."""
        return self.model.hparams

    @property
    def hparams_initial(self) -> Any:
        """The module's hyperparameters as they were saved."""
        return self.model.hparams_initial

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.model(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's own state, by its own names: its class reads a checkpoint by ``load_from_checkpoint``."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load the module's own state."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)

    # ---- set-up ------------------------------------------------------------------------------------------------------

    def attach_plugins(self) -> None:
        """Attach the plugins; not before the module has its layers, if it makes them in ``setup``."""
        if self._has_layers:
            super().attach_plugins()

    def prepare_data(self) -> None:
        """Let data module and module prepare their data."""
        self.sources.prepare()

    def setup(self, stage: str) -> None:
        """Set data module and module up, then attach the plugins."""
        module, sources = self.model, self.sources
        module.trainer = TrainerView(self.trainer, module, sources.datamodule, self.accumulate, self._clip)
        sources.set_up(module.trainer, stage)
        tell(module, "setup", stage)
        self._has_layers = self._has_layers or not overridden(module, "configure_model")
        super().setup(stage)

    def configure_model(self) -> None:
        """Let the module make its layers, and attach the plugins."""
        if overridden(self.model, "configure_model"):
            self.model.configure_model()
            self._has_layers = True
            self.attach_plugins()
        super().configure_model()

    def teardown(self, stage: str) -> None:
        """Stop loader workers, and tear module and data module down."""
        super().teardown(stage)
        tell(self.model, "teardown", stage)
        self.sources.tear_down(stage)

    # ---- data --------------------------------------------------------------------------------------------------------

    @property
    def _datamodule(self) -> Any:
        """None: ``sources`` sets the data module up, with the module."""
        return None

    def train_dataloader(self) -> Any:
        """Return the training loader, whose batches are windows."""
        if self.sources.own("train") is not None:
            return super().train_dataloader()
        # as Lightning would: samplers for ranks, seeds for workers
        loader = self.sources.training_loader()
        loader = _process_dataloader(self.trainer, TrainerFn.FITTING, RunningStage.TRAINING, loader)
        windows = WindowLoader(loader, self.accumulate)
        self.place.put(windows)
        self._loaders["train"] = windows
        return windows

    def val_dataloader(self) -> Any:
        """Return the validation loaders, an empty list if there are none."""
        return self._eval_loaders("val")

    def test_dataloader(self) -> Any:
        """Return the test loaders, an empty list if there are none."""
        return self._eval_loaders("test")

    def predict_dataloader(self) -> Any:
        """Return the loaders for predictions; those of the test part unless there are others."""
        loaders = self.sources.loaders("predict")
        return self._eval_loaders("test") if loaders is None else loaders

    def _eval_loaders(self, part: str) -> Any:
        if self.sources.own(part) is not None:
            return self._eval_loader(part)
        loaders = self.sources.loaders(part)
        return [] if loaders is None else loaders

    def training_batches(self, limit: int) -> Iterator[Any]:
        """Yield up to ``limit`` training batches on the device; training is unaffected, draws included."""
        loader = self._loaders.get("train")
        if self.sources.own("train") is not None:
            yield from super().training_batches(limit)
            return
        if not isinstance(loader, WindowLoader):  # before training, and without it
            loader = WindowLoader(self.sources.training_loader())
        with loader.aside() as batches:
            for batch in itertools.islice(batches, limit):
                moved = self.trainer.precision_plugin.convert_input(batch)
                yield self.transfer_batch_to_device(moved, self.device, 0)

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches of an epoch of the training loader, None if unknown."""
        loader = self._loaders.get("train")
        try:
            return len(loader.loader) if isinstance(loader, WindowLoader) else None
        except TypeError:
            return None

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch, or each batch of a window, by the hooks of data module and module."""
        if isinstance(batch, Window):
            moved = [self.sources.move(one, device, dataloader_idx) for one in batch.batches]
            return batch._replace(batches=moved)
        return self.sources.move(batch, device, dataloader_idx)

    def samples(self, batch: Any) -> int:
        """Return the number of samples in a batch by Lightning's rule, 1 if it finds none."""
        try:
            return extract_batch_size(batch)
        except Exception:  # Lightning raises a MisconfigurationException, tensors of no dimension an IndexError
            return 1

    def count(self, batch: Any) -> int:
        """Return 1: every batch of a window counts the same, as in Lightning."""
        return 1
