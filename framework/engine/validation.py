"""The validation within a fit, without the overhead of Lightning's loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytorch_lightning as pl
from lightning_fabric.plugins import Precision as FabricPrecision
from lightning_fabric.utilities.data import _set_sampler_epoch
from pytorch_lightning.core.hooks import DataHooks
from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop
from pytorch_lightning.loops.fetchers import _PrefetchDataFetcher
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy, Strategy
from pytorch_lightning.trainer.states import RunningStage, TrainerFn
from pytorch_lightning.utilities.exceptions import SIGTERMException

from framework.engine.core import Core
from framework.engine.gradient import has_own


class ValidationLoop(_EvaluationLoop):
    """Calls the same hooks as Lightning's loop, in its order and with its counters, but only those that are overridden.

    Around a validation batch of 150 microseconds Lightning's loop spends 250 on empty hooks, and around a validation a
    millisecond, of which a third on inspecting the signatures of hooks.

    Lightning's own code runs if a profiler, several loaders, or a ``validation_step`` of the user's is used.

    Args:
        trainer: the Trainer.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        super().__init__(trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False)
        self._quick = self._moves = False

    def on_run_start(self) -> None:
        """Determine whether Lightning's own code is needed, and call the hooks of a validation's start."""
        trainer: Any = self.trainer
        core = trainer.lightning_module
        self._quick = (
            type(self._data_fetcher) is _PrefetchDataFetcher
            and self.num_dataloaders == 1
            and type(trainer.profiler) is PassThroughProfiler
            and type(core).validation_step is Core.validation_step
        )
        self._moves = moves_batches(trainer)
        super().on_run_start()

    def reset(self) -> None:
        """Make a new iterator; Lightning makes a fetcher too, for which it inspects the core's signatures."""
        fetcher, combined = self._data_fetcher, self._combined_loader
        if not self._quick or self.restarting or fetcher is None or fetcher._combined_loader is not combined:
            super().reset()
            return
        assert combined is not None
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        self._has_run, self._logged_outputs = False, []
        self.batch_progress.reset_on_run()
        for loader in combined.flattened:
            _set_sampler_epoch(loader, epochs.processed)
        combined.limits = self.max_batches
        iter(fetcher)
        fetcher.fetched += self.batch_progress.current.ready

    def _verify_dataloader_idx_requirement(self) -> None:
        if not self._quick:
            super()._verify_dataloader_idx_requirement()

    def _evaluation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Iterator[Any] | None
    ) -> None:
        if not self._quick:
            super()._evaluation_step(batch, batch_idx, dataloader_idx, dataloader_iter)
            return
        trainer, progress, results = self.trainer, self.batch_progress, self._results
        core, connector = cast(Core, trainer.lightning_module), trainer._logger_connector
        if self._moves:
            batch = moved(trainer, batch)
        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        self._tell("on_validation_batch_start", batch, batch_idx)
        progress.increment_started()
        core._current_fx_name = "validation_step"
        strategy = trainer.strategy
        bare = type(strategy) is SingleDeviceStrategy and type(trainer.precision_plugin) is pl.plugins.Precision
        output = (core if bare else strategy).validation_step(batch, batch_idx)
        core._current_fx_name = None
        progress.increment_processed()
        self._tell("on_validation_batch_end", output, batch, batch_idx)
        if results:  # something logs through Lightning
            connector.on_batch_end()
        else:
            results.batch = results.batch_size = None
        progress.increment_completed()
        if not trainer.sanity_checking:
            self._has_run = True
            if results:
                connector.update_eval_step_metrics(self._seen_batches_per_dataloader[dataloader_idx])
            self._seen_batches_per_dataloader[dataloader_idx] += 1
        if not progress.is_last_batch and trainer.received_sigterm:
            raise SIGTERMException

    def _on_evaluation_start(self, *args: Any, **kwargs: Any) -> None:
        if not self._quick:
            super()._on_evaluation_start(*args, **kwargs)
            return
        self._tell("on_validation_start")
        self.trainer.strategy.on_validation_start()

    def _on_evaluation_epoch_start(self, *args: Any, **kwargs: Any) -> None:
        if not self._quick:
            super()._on_evaluation_epoch_start(*args, **kwargs)
            return
        self._tell("on_validation_epoch_start")

    def _on_evaluation_epoch_end(self) -> None:
        if not self._quick:
            super()._on_evaluation_epoch_end()
            return
        self._tell("on_validation_epoch_end")
        self.trainer._logger_connector.on_epoch_end()

    def _on_evaluation_end(self, *args: Any, **kwargs: Any) -> None:
        if not self._quick:
            super()._on_evaluation_end(*args, **kwargs)
            return
        self._tell("on_validation_end")
        self.trainer.strategy.on_validation_end()
        self.trainer._logger_connector.reset_results()

    def _tell(self, hook: str, *args: Any) -> None:
        """Call a hook of the callbacks, then of the core, where they override it."""
        trainer = self.trainer
        core = trainer.lightning_module
        tells = [getattr(one, hook) for one in trainer.callbacks if has_own(one, hook)]  # type: ignore[attr-defined]
        own = getattr(core, hook) if has_own(core, hook) else None
        if tells or own is not None:
            before, core._current_fx_name = core._current_fx_name, hook
            for tell in tells:
                tell(trainer, core, *args)
            if own is not None:
                own(*args)
            core._current_fx_name = before


def moves_batches(trainer: pl.Trainer) -> bool:
    """Return whether batches must be moved to the device, or something overrides how they are moved."""
    core, strategy = cast(Core, trainer.lightning_module), trainer.strategy
    return (
        strategy.root_device.type != "cpu"
        or type(core).on_before_batch_transfer is not DataHooks.on_before_batch_transfer
        or type(core).transfer_batch_to_device is not Core.transfer_batch_to_device
        or type(core).on_after_batch_transfer is not DataHooks.on_after_batch_transfer
        or type(strategy).batch_to_device is not Strategy.batch_to_device
        or type(trainer.precision_plugin).convert_input is not FabricPrecision.convert_input
    )


def moved(trainer: pl.Trainer, batch: Any) -> Any:
    """Return a batch on the device, as Lightning moves it."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
