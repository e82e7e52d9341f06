"""An objective with its data: the loaders, a data module, and the place in an epoch where a resumed run continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchmetrics import Metric

from framework.data.evaluation import EvalLoader, ReadyLoader
from framework.data.loaders import TrainLoader
from framework.data.modules import overridden
from framework.data.ready import WindowLoader
from framework.engine.objective import Objective
from framework.engine.place import Place


class Loading(Objective):
    """The part of :class:`framework.Core` that gives Lightning the loaders.

    Attributes:
        accumulate: micro-batches per optimizer step.
        place: where the run continues on a user's loader.
    """

    accumulate: int
    place: Place
    _loaders: dict[str, TrainLoader | EvalLoader | WindowLoader | ReadyLoader]

    def prepare_data(self) -> None:
        """Let a data module prepare its data."""
        if (module := self._datamodule) is not None and overridden(module, "prepare_data"):
            module.prepare_data()

    def setup(self, stage: str) -> None:
        """Set a data module up, and attach the plugins, before weights and states are restored from a checkpoint."""
        if (module := self._datamodule) is not None:
            module.trainer = self.trainer
            module.setup(stage)
        super().setup(stage)

    @property
    def _datamodule(self) -> Any:
        return None if self.data is None else self.data.datamodule

    def train_dataloader(self) -> TrainLoader | WindowLoader:
        """Return the training loader, whose batches are windows."""
        trainer = self.trainer
        self.close_loaders("train")
        loader = self._data.train_loader(
            seed=self.seed,
            accumulate=self.accumulate,
            transforms=self._sample_transforms,
            rank=trainer.global_rank,
            world=trainer.world_size,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )
        if self._overfits:
            del loader.sampler  # without a sampler Lightning repeats the order of the first epoch in all epochs
        if isinstance(loader, WindowLoader):
            loader.check_length()
            self.place.put(loader)
        self._loaders["train"] = loader
        return loader

    def val_dataloader(self) -> EvalLoader | ReadyLoader | list[Any]:
        """Return the loader of the validation part, or an empty list if there is none."""
        return [] if self._data.part("val") is None else self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader | ReadyLoader:
        """Return the loader of the test part, for test."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader | ReadyLoader:
        """Return the loader of the test part, for predict."""
        return self._eval_loader("test")

    def _eval_loader(self, part: str) -> EvalLoader | ReadyLoader:
        self.close_loaders(part)
        loader = self._data.eval_loader(part, rank=self.trainer.global_rank, world=self.trainer.world_size)
        self._loaders[part] = loader
        return loader

    def close_loaders(self, *parts: str) -> None:
        """Stop the worker processes of the loaders of the given parts, or of all parts if none is given."""
        for part in parts or tuple(self._loaders):
            if part in self._loaders:
                self._loaders[part].close()

    def exit_code_of_workers(self) -> int | None:
        """Return the exit code of a loader's worker that failed, None if none did."""
        return next((code for loader in self._loaders.values() if (code := loader.exit_code)), None)

    def teardown(self, stage: str) -> None:
        """Stop the loaders' worker processes, and tear a data module down."""
        self.close_loaders()
        if (module := self._datamodule) is not None:
            module.teardown(stage)

    @property
    def _samples_per_step(self) -> int | None:
        loader = self._loaders.get("train")
        return loader.samples_per_step if isinstance(loader, TrainLoader) else None

    @property
    def _overfits(self) -> bool:
        return bool(self.trainer.overfit_batches)  # type: ignore[attr-defined] # set outside of __init__

    def _own_metrics(self) -> Mapping[str, Metric] | None:
        """Return metrics that only a user's module resets, None if there is no such module."""
        return None
