"""Lightning's loop over the batches of an epoch, with less overhead per step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import pytorch_lightning as pl
from pytorch_lightning.loops.fetchers import _DataFetcher, _PrefetchDataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins import Precision
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy, Strategy

from framework.data.loaders import TrainLoader, Window
from framework.data.ready import WindowLoader
from framework.engine.core import Core
from framework.engine.gradient import has_own
from framework.engine.validation import ValidationLoop, moved, moves_batches


class _Epoch(NamedTuple):
    """What is the same for all steps of an epoch, determined once at its start.

    Args:
        core: the core that makes the steps.
        windows: the loader's own iterator, below Lightning's.
        moves: whether windows must be moved to the device, or something overrides how they are moved.
        starts: the callbacks' ``on_train_batch_start``, where overridden.
        core_start: the core's ``on_train_batch_start``, None if not overridden.
        train: makes the step.
        ends: the callbacks' ``on_train_batch_end``, where overridden.
        core_end: the core's ``on_train_batch_end``, None if not overridden.
        validation: batches from one validation to the next, 0 if this epoch has no validation.
    """

    core: Core
    windows: Iterator[Window]
    moves: bool
    starts: list[Callable[..., None]]
    core_start: Callable[..., int | None] | None
    train: Callable[[Window, int], Any]
    ends: list[Callable[..., None]]
    core_end: Callable[..., None] | None
    validation: int


class EpochLoop(_TrainingEpochLoop):
    """Calls the same hooks as Lightning's loop, in its order and with its counters, but only those that are overridden.

    Around a step of 280 microseconds Lightning's loop spends 170 on the empty hooks of every callback, on contexts of a
    profiler that does nothing, on inspecting the signature of ``training_step``, on fetching through four iterators and
    on comparing states of the Trainer; under ddp 900 more on a broadcast per batch that checks for SIGTERM. Here the
    overridden hooks are determined once per epoch.

    Lightning's own code runs for the first batch after a restart, for a batch that is followed by validation, and if a
    profiler, or a loader or ``training_step`` of the user's, is used.

    Args:
        loop: Lightning's loop, which this one replaces.
    """

    def __init__(self, loop: _TrainingEpochLoop) -> None:
        super().__init__(loop.trainer, min_steps=loop.min_steps, max_steps=loop.max_steps)
        self.val_loop = ValidationLoop(loop.trainer)
        self._epoch: _Epoch | None = None

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Start an epoch, and determine which hooks are overridden."""
        super().on_run_start(data_fetcher)
        self._epoch = self._find_out(data_fetcher)

    def _find_out(self, fetcher: _DataFetcher) -> _Epoch | None:
        trainer = self.trainer
        core, strategy, precision = cast(Core, trainer.lightning_module), trainer.strategy, trainer.precision_plugin
        if (
            type(fetcher) is not _PrefetchDataFetcher
            or not isinstance(fetcher.combined_loader.iterables, (TrainLoader, WindowLoader))
            or fetcher.length is None
            or not isinstance(trainer.val_check_batch, int)  # validation at time intervals
            or type(trainer.profiler) is not PassThroughProfiler
            or type(core).training_step is not Core.training_step
            or type(strategy).on_train_batch_start is not Strategy.on_train_batch_start
            or trainer.fast_dev_run
        ):
            return None
        callbacks: list[pl.Callback] = trainer.callbacks
        iterator = fetcher.combined_loader._iterator
        assert iterator is not None
        return _Epoch(
            core=core,
            windows=iterator.iterators[0],
            moves=moves_batches(trainer),
            starts=[one.on_train_batch_start for one in callbacks if has_own(one, "on_train_batch_start")],
            core_start=core.on_train_batch_start if has_own(core, "on_train_batch_start") else None,
            train=core.training_step
            if type(strategy) is SingleDeviceStrategy and type(precision) is Precision
            else strategy.training_step,
            ends=[one.on_train_batch_end for one in callbacks if has_own(one, "on_train_batch_end")],
            core_end=core.on_train_batch_end if has_own(core, "on_train_batch_end") else None,
            validation=trainer.val_check_batch if self._should_check_val_epoch() else 0,
        )

    @property
    def done(self) -> bool:
        """Whether the epoch has ended."""
        if self._epoch is None or self._restarting or self.trainer.should_stop:
            return super().done
        progress, steps = self.batch_progress, self.manual_optimization.optim_step_progress.total.completed
        at_end = progress.is_last_batch or progress.current.ready == self.trainer.num_training_batches
        return at_end or -1 < self.max_steps <= steps

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Make one optimizer step.

        Raises:
            StopIteration: if the core's ``on_train_batch_start`` ended the epoch by returning -1.
        """
        epoch, progress = self._epoch, self.batch_progress
        if epoch is None or self._restarting:
            super().advance(data_fetcher)
            return
        if self.val_loop._restarting:
            self.val_loop.restarting = False
        batch: Any = next(epoch.windows)
        data_fetcher.fetched += 1
        data_fetcher.done = progress.is_last_batch = data_fetcher.fetched >= data_fetcher.length  # type: ignore[operator]
        trainer, core, index = self.trainer, epoch.core, progress.current.ready
        if epoch.moves:
            batch = moved(trainer, batch)
        progress.increment_ready()
        connector, results = trainer._logger_connector, self._results
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        if epoch.starts or epoch.core_start is not None:
            core._current_fx_name = "on_train_batch_start"
            for tell in epoch.starts:
                tell(trainer, core, batch, index)
            if epoch.core_start is not None and epoch.core_start(batch, index) == -1:
                progress.increment_by(0, is_last_batch=True)
                progress.increment_processed()
                raise StopIteration
        progress.increment_started()
        core._current_fx_name = "training_step"
        epoch.train(batch, index)
        progress.increment_processed()
        core._current_fx_name = "on_train_batch_end"
        for tell in epoch.ends:
            tell(trainer, core, {}, batch, index)
        if epoch.core_end is not None:
            epoch.core_end({}, batch, index)
        core._current_fx_name = None
        if any(not one.has_reset for one in results.values()):  # something logs through Lightning
            connector.on_batch_end()
            progress.increment_completed()
            connector.update_train_step_metrics()
        else:
            results.batch = None
            progress.increment_completed()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Run validation if it is due after this batch."""
        epoch, trainer = self._epoch, self.trainer
        if (
            epoch is None
            or self._restarting
            or self._skip_next_val
            or trainer.should_stop
            or (epoch.validation and self._batches % epoch.validation == 0)
        ):
            super().on_advance_end(data_fetcher)
            return
        self._batches_that_stepped += 1

    @property
    def _batches(self) -> int:
        progress = self.batch_progress
        return progress.total.ready if self.trainer.check_val_every_n_epoch is None else progress.current.ready

    def teardown(self) -> None:
        """Release the objects of the last epoch."""
        self._epoch = None
        super().teardown()
