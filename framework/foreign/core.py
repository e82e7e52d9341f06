"""``Foreign``, the core that trains somebody else's LightningModule as it is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchmetrics import Metric

from framework.data.data import Data
from framework.data.loaders import Window
from framework.data.modules import overridden
from framework.data.outcome import Outcome
from framework.engine.skips import OnNonFinite
from framework.errors import UserError
from framework.foreign.checks import check_module
from framework.foreign.forward import ForeignForward
from framework.foreign.hooks import pass_on, tell
from framework.foreign.layout import add_entries, find_entries
from framework.foreign.shell import Shell
from framework.foreign.sources import Sources
from framework.foreign.steps import Steps
from framework.foreign.trace import keep_attributes
from framework.foreign.update import Configured, ForeignUpdate
from framework.plugin.plugin import Plugin

# what modules commonly call their validation loss
_LOSSES = ("val_loss", "val/loss", "valid_loss", "valid/loss", "validation_loss", "validation/loss")


class Foreign(Shell):
    r"""Trains a ``LightningModule`` by its own ``training_step``, with plugins around it.

    J of a batch is what ``training_step`` returns. The module's optimizer, schedulers, hooks and ``self.log`` work as
    under Lightning's Trainer, and without plugins a run has its bits: draws come from the process's generators, whose
    states are kept in checkpoints. With ``accumulate_grad_batches`` every batch counts the same, as in Lightning,
    except that a short last window is divided by its own number of batches.

    Args:
        model: the LightningModule, of ``pytorch_lightning`` or ``lightning.pytorch``.
        plugins: the plugins in recipe order.
        data: the data; parts that it leaves open are the module's own loaders.
        monitor: tag of the metric that determines the best epoch, ``""`` for the module's own.

    The other arguments are those of :class:`framework.Core`.

    Raises:
        UserError: if the module, or a plugin beside it, cannot be trained so.
    """

    _forward_kind = ForeignForward
    _update_kind = ForeignUpdate
    _prefix = ""
    update: ForeignUpdate

    def __init__(
        self,
        model: Any,
        plugins: Sequence[Plugin] = (),
        *,
        data: Data | None = None,
        seed: int = 0,
        accumulate: int = 1,
        clip: tuple[float | None, str | None] = (None, None),
        compile: Any = False,
        on_nonfinite: OnNonFinite = "stop",
        monitor: str = "",
        mode: str = "min",
    ) -> None:
        check_module(model, plugins, compile)
        super().__init__(
            model,
            None,
            None,
            plugins,
            data=data,
            seed=seed,
            accumulate=accumulate,
            clip=clip,
            on_nonfinite=on_nonfinite,
            monitor=monitor,
            mode=mode,
        )
        if self.model is not model:
            who = " and ".join(plugin.name for plugin in self.answers.of("prepare_model"))
            raise UserError(
                f"{who}: puts another module in place of {type(model).__name__}, which Lightning's hooks need"
            )
        self._clip = clip
        self._has_layers = not (overridden(model, "setup") or overridden(model, "configure_model"))
        self.steps, self.sources = Steps(model), Sources(model, data)
        self.prepare_data_per_node = self.sources.prepares_on_each_node
        self._log_hyperparams = model._log_hyperparams
        self._told_of_monitor = False
        pass_on(self, model)

    # ---- one step ----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Return the module's optimizer and schedulers, or those of the plugins."""
        name, answers = type(self.model).__name__, self.answers
        if answers.of("make_optimizer"):
            self.update.configured = None
            return super().configure_optimizers()
        if grouping := answers.of("group_parameters"):
            raise UserError(
                f"{grouping[0].name} groups parameters, but {name}.configure_optimizers makes the optimizer; group them"
                " there, or give a plugin with make_optimizer"
            )
        configured = Configured(self.model.configure_optimizers(), name)
        if not self.recorder.monitor:
            self.recorder.monitor = next((one.monitor for one in configured.schedules if one.monitor), None) or ""
            self.monitor = self.recorder.monitor
        scheduler = None
        if answers.of("make_scheduler"):
            scheduler = answers.sole("make_scheduler", configured.optimizer, self._total_steps())
        if scheduler is not None:
            self.update.configured = None
            self.update.monitor = scheduler.get("monitor") or "val/loss"
            kept = {key: value for key, value in scheduler.items() if key != "monitor"}
            return {"optimizer": configured.optimizer, "lr_scheduler": kept}
        self.update.configured = configured
        return configured.for_lightning()

    def on_train_end(self) -> None:
        """Hand the module back with the optimizer's weights for evaluation."""
        super().on_train_end()
        tell(self.model, "on_train_end")

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        return int(steps) if 0 < steps < math.inf else -1

    def on_train_start(self) -> None:
        """Prepare the objects that make a step."""
        super().on_train_start()
        total = self._total_steps()
        self.at.total = total if total > 0 else math.inf
        self.place.put_metrics(self._own_metrics())
        tell(self.model, "on_train_start")

    def on_train_epoch_start(self) -> None:
        """Start the means of a new epoch."""
        super().on_train_epoch_start()
        tell(self.model, "on_train_epoch_start")

    def on_train_batch_start(self, batch: Window, batch_idx: int) -> Any:
        """Announce the first batch of a window; the module may end the epoch by returning -1."""
        return self.steps.begin(batch.batches[0], batch_idx * self.accumulate)

    def compute_loss(self, batch: Any) -> Outcome:
        """Compute J of a batch by the module's ``training_step``."""
        step, steps = self.at, self.steps
        if step.again:
            return Outcome(steps.quietly(batch))
        if step.micro:
            self._current_fx_name = "on_train_batch_end"
            steps.end()
            self._current_fx_name = "on_train_batch_start"
            if steps.begin(batch, steps.index + 1) == -1:
                raise UserError(
                    f"{type(self.model).__name__}.on_train_batch_start ended the epoch within a step of {step.micros}"
                    " batches; end it at a step's first batch, or leave accumulate_grad_batches out"
                )
            self._current_fx_name = "training_step"
        results: Any = self.trainer._results
        results.batch, results.batch_size = batch, None
        return Outcome(steps(batch))

    def on_train_batch_end(self, outputs: Any, batch: Window, batch_idx: int) -> None:
        """Announce the end of the window's last batch."""
        self.steps.end()
        self.update.step_plateaus()

    def keep_state(self) -> Callable[[], None]:
        """Remember buffers and attributes of the module, and return a function that puts them back."""
        buffers, attributes = super().keep_state(), keep_attributes(self.model)

        def put_back() -> None:
            attributes()
            buffers()

        return put_back

    def on_train_epoch_end(self) -> None:
        """Publish the epoch's means and what the module logged, and step schedulers that count epochs."""
        tell(self.model, "on_train_epoch_end")
        logged = self._logged()
        self.recorder.end_epoch()
        self.recorder.remember(logged)
        self.update.end_epoch(self.recorder.validated)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def _logged(self) -> dict[str, float]:
        """Return what was logged through Lightning since the epoch or evaluation began, by tag."""
        self.trainer._logger_connector.epoch_end_reached()
        results: Any = self.trainer._results
        metrics = {**results.metrics(True)["callback"], **results.metrics(False)["callback"]}
        return {tag: float(value) for tag, value in metrics.items() if value.numel() == 1}

    def _evaluated(self, stage: str) -> dict[str, float]:
        """Return the metrics of an evaluation, which the module logs."""
        hook = {"val": "on_validation_epoch_end"}.get(stage, f"on_{stage}_epoch_end")
        tell(self.model, hook)
        metrics = self._logged()
        if stage == "val" and not self.recorder.monitor and not self.trainer.sanity_checking:
            self._choose_monitor(metrics)
        self.recorder.publish(stage, metrics)
        return metrics

    def _choose_monitor(self, metrics: Mapping[str, float]) -> None:
        """Choose the metric of the best epoch, once the module has logged some."""
        self.monitor = self.recorder.monitor = next((tag for tag in _LOSSES if tag in metrics), "")
        if not self.monitor and metrics and self.trainer.state.fn == "fit" and not self._told_of_monitor:
            self._told_of_monitor = True
            warnings.warn(
                f"{type(self.model).__name__} logs no metric by which an epoch is plainly the best; give"
                f" Recipe(monitor=..., mode=...), one of: {', '.join(sorted(metrics))}",
                stacklevel=2,
            )

    def on_validation_start(self) -> None:
        """Switch to the evaluation weights."""
        self.update.modes.eval()
        self.enter_evaluation()
        tell(self.model, "on_validation_start")

    def on_test_start(self) -> None:
        """Switch to the evaluation weights."""
        self.enter_evaluation()
        tell(self.model, "on_test_start")

    def on_predict_start(self) -> None:
        """Switch to the evaluation weights."""
        self.enter_evaluation()
        tell(self.model, "on_predict_start")

    def on_predict_end(self) -> None:
        """Restore the raw weights."""
        tell(self.model, "on_predict_end")
        self.leave_evaluation()

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's state, the module's own entries, and the positions of generators and loaders."""
        super().on_save_checkpoint(checkpoint)
        add_entries(checkpoint, self.model, self.sources.datamodule)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the run's state and the module's own entries."""
        super().on_load_checkpoint(checkpoint)
        find_entries(checkpoint, self.model, self.sources.datamodule)

    def _own_metrics(self) -> dict[str, Metric]:
        """Return the module's torchmetrics by name, without those within another."""
        found = {name: one for name, one in self.model.named_modules() if isinstance(one, Metric)}
        inner = {part for one in found.values() for part in one.modules() if part is not one}
        return {name: one for name, one in found.items() if one not in inner}
