"""``Foreign``, the core that trains somebody else's LightningModule as it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.connectors.data_connector import _process_dataloader
from pytorch_lightning.trainer.states import RunningStage, TrainerFn
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from framework.data.batch import Outcome
from framework.data.data import Data
from framework.data.loaders import Window
from framework.data.ready import WindowLoader
from framework.engine.core import Core
from framework.engine.metrics import restore_metric, state_of_metric
from framework.engine.skips import OnNonFinite
from framework.errors import UserError
from framework.foreign.checks import check_module, overridden
from framework.foreign.forward import ForeignForward
from framework.foreign.layout import add_entries, find_entries
from framework.foreign.trace import keep_attributes
from framework.foreign.update import Configured, ForeignUpdate
from framework.foreign.view import TrainerView
from framework.plugin.plugin import Plugin

# hooks of a LightningModule that Lightning calls on the core, which only passes them on
_PASSED_ON = (
    "on_fit_start",
    "on_fit_end",
    "on_train_end",
    "on_validation_end",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_test_end",
    "on_test_epoch_start",
    "on_test_batch_start",
    "on_test_batch_end",
    "on_predict_epoch_start",
    "on_predict_epoch_end",
    "on_predict_batch_start",
    "on_predict_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "backward",
    "configure_callbacks",
    "on_validation_model_zero_grad",
)
_MODES = ("on_validation_model_eval", "on_validation_model_train", "on_test_model_eval", "on_test_model_train")
_STEPS = ("validation_step", "test_step", "predict_step")


class Foreign(Core):
    r"""Trains a ``LightningModule`` by its own ``training_step``, with plugins around it.

    J of a batch is what ``training_step`` returns. The module's optimizer, schedulers, hooks and ``self.log`` work as
    under Lightning's Trainer, and without plugins a run has its bits: draws come from the process's generators, whose
    states are kept in checkpoints. With ``accumulate_grad_batches`` every batch counts the same, as in Lightning, except
    that a short last window is divided by its own number of batches.

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
            raise UserError(f"{who}: puts another module in place of {type(model).__name__}, which Lightning's hooks need")
        self._clip = clip
        self._ready = not (overridden(model, "setup") or overridden(model, "configure_model"))
        self._kept: dict[str, Any] | None = None
        self._kept_metrics: dict[str, Any] = {}
        self._place = (0, 0)  # the epoch, and the windows of it before the run was resumed
        self._ended: list[Any] = []
        self.last_batch_idx = 0
        for source in (model, self._datamodule):
            if source is not None:
                self.prepare_data_per_node = source.prepare_data_per_node
        for hook in _PASSED_ON:
            if overridden(model, hook):
                self.__dict__[hook] = getattr(model, hook)
        for hook in _MODES:
            if overridden(model, hook):
                self.__dict__[hook] = MethodType(_changing_mode(hook), self)
        for step in _STEPS:
            own = overridden(model, step) or step == "predict_step"
            self.__dict__[step] = getattr(model, step) if own else MethodType(getattr(pl.LightningModule, step), self)
        self._log_hyperparams = model._log_hyperparams
        takes_index = is_param_in_hook_signature(model.training_step, "batch_idx", min_args=2)
        self._training_arguments = 2 if takes_index else 1

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

    def _tell(self, hook: str, *args: Any) -> Any:
        return getattr(self.model, hook)(*args) if overridden(self.model, hook) else None

    # ---- set-up ------------------------------------------------------------------------------------------------------

    def attach_plugins(self) -> None:
        """Attach the plugins; not before the module made its layers, if it makes them in ``setup``."""
        if self._ready:
            super().attach_plugins()

    def prepare_data(self) -> None:
        """Let data module and module prepare their data."""
        if self._datamodule is not None:
            self._datamodule.prepare_data()
        self._tell("prepare_data")

    def setup(self, stage: str) -> None:
        """Set data module and module up, then attach the plugins."""
        trainer = self.trainer
        view = TrainerView(trainer, self.model, self._datamodule, self.accumulate, self._clip)
        self.model.trainer = view
        if self._datamodule is not None:
            self._datamodule.trainer = view
            self._datamodule.setup(stage)
        self._tell("setup", stage)
        self._before_move = self._data_hook("on_before_batch_transfer")
        self._move = self._data_hook("transfer_batch_to_device")
        self._after_move = self._data_hook("on_after_batch_transfer")
        self._ready = self._ready or not overridden(self.model, "configure_model")
        super().setup(stage)

    def configure_model(self) -> None:
        """Let the module make its layers, and attach the plugins."""
        self._tell("configure_model")
        if overridden(self.model, "configure_model") and not self._ready:
            self._ready = True
            self.attach_plugins()
        super().configure_model()

    def teardown(self, stage: str) -> None:
        """Stop loader workers, and tear module and data module down."""
        super().teardown(stage)
        self._tell("teardown", stage)
        if self._datamodule is not None:
            self._datamodule.teardown(stage)

    # ---- data --------------------------------------------------------------------------------------------------------

    @property
    def _datamodule(self) -> Any:
        return None if self.data is None else self.data.datamodule

    def _loaders_of(self, part: str) -> Any:
        """Return the user's loaders of a part: of the data, the data module, or the module; None if none has any."""
        given = None if self.data is None else getattr(self.data, part, None)
        if given is not None:
            return given
        hook = {"train": "train_dataloader", "val": "val_dataloader"}.get(part, f"{part}_dataloader")
        for source in (self._datamodule, self.model):
            if source is not None and overridden(source, hook):
                return getattr(source, hook)()
        return None

    def train_dataloader(self) -> Any:
        """Return the training loader, whose batches are windows."""
        if self.data is not None and self.data.train is not None and not self.data.is_ready("train"):
            return super().train_dataloader()
        loader = self._loaders_of("train")
        name = type(self.model).__name__
        if loader is None:
            raise UserError(f"{name} has no training data: give Recipe(data=...), or write {name}.train_dataloader")
        if isinstance(loader, (CombinedLoader, dict, list, tuple)):
            raise UserError("several training loaders: give one loader whose batch is a mapping")
        # as Lightning would: samplers for ranks, seeds for workers
        loader = _process_dataloader(self.trainer, TrainerFn.FITTING, RunningStage.TRAINING, loader)
        windows = WindowLoader(loader, self.accumulate)
        # already here, since Lightning reads a batch of a stream ahead, and before it restores its counters
        windows.epoch, windows.start = self._place
        if self._kept is not None:
            windows.resume(self._kept)
            self._kept = None
        self._loaders["train"] = windows
        return windows

    def val_dataloader(self) -> Any:
        """Return the validation loaders, an empty list if there are none."""
        return self._eval_loaders("val")

    def test_dataloader(self) -> Any:
        """Return the test loaders."""
        return self._eval_loaders("test")

    def predict_dataloader(self) -> Any:
        """Return the loaders for predictions; those of the test part unless there are others."""
        loaders = self._loaders_of("predict")
        return self._eval_loaders("test") if loaders is None else loaders

    def _eval_loaders(self, part: str) -> Any:
        if self.data is not None and getattr(self.data, part) is not None and not self.data.is_ready(part):
            return self._eval_loader(part)
        loaders = self._loaders_of(part)
        return [] if loaders is None else loaders

    def training_batches(self, limit: int) -> Iterator[Any]:
        """Yield up to ``limit`` training batches on the device; training is unaffected, draws included."""
        loader = self._loaders.get("train")
        if not isinstance(loader, WindowLoader):
            yield from super().training_batches(limit)
            return
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
            return batch._replace(batches=[self._moved(one, device, dataloader_idx) for one in batch.batches])
        return self._moved(batch, device, dataloader_idx)

    def _moved(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if self._before_move is not None:
            batch = self._before_move(batch, dataloader_idx)
        if self._move is not None:
            batch = self._move(batch, device, dataloader_idx)
        elif device.type != "cpu":
            batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return batch if self._after_move is None else self._after_move(batch, dataloader_idx)

    def _data_hook(self, hook: str) -> Callable[..., Any] | None:
        sources = (one for one in (self._datamodule, self.model) if one is not None and overridden(one, hook))
        return next((getattr(one, hook) for one in sources), None)

    def samples(self, batch: Any) -> int:
        """Return the number of samples in a batch by Lightning's rule, 1 if it finds none."""
        try:
            return extract_batch_size(batch)
        except Exception:  # Lightning raises a MisconfigurationException, tensors of no dimension an IndexError
            return 1

    def count(self, batch: Any) -> int:
        """Return 1: every batch of a window counts the same, as in Lightning."""
        return 1

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
            self.recorder.monitor = next((one.monitor for one in configured.schedules if one.monitor), "")
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

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        return int(steps) if 0 < steps < math.inf else -1

    def on_train_start(self) -> None:
        """Prepare the objects that make a step."""
        super().on_train_start()
        total = self._total_steps()
        self.at.total = total if total > 0 else math.inf
        loader = self._loaders.get("train")
        within = loader is not None and loader.start > 0  # at an epoch's end metrics are reset
        for name, metric in self._metrics():
            if within and name in self._kept_metrics:
                restore_metric(metric, self._kept_metrics[name])
        self._kept_metrics = {}
        self._tell("on_train_start")

    def on_train_epoch_start(self) -> None:
        """Start the means of a new epoch."""
        super().on_train_epoch_start()
        self._tell("on_train_epoch_start")

    def on_train_batch_start(self, batch: Window, batch_idx: int) -> int | None:
        """Announce the first batch of a window; the module may end the epoch by returning -1."""
        self._ended = []
        self.last_batch_idx = batch_idx * self.accumulate
        return self._begin_batch(batch.batches[0])

    def _begin_batch(self, batch: Any) -> int | None:
        answer: int | None = self._tell("on_train_batch_start", batch, self.last_batch_idx)
        return answer

    def compute_loss(self, batch: Any) -> Outcome:
        """Compute J of a batch by the module's ``training_step``."""
        step = self.at
        if step.again:
            output = self._quietly(batch)
        else:
            if step.micro:
                self._end_batch()
                self.last_batch_idx += 1
                if self._begin_batch(batch) == -1:
                    raise UserError(
                        f"{type(self.model).__name__}.on_train_batch_start ended the epoch within a step of"
                        f" {step.micros} batches; end it at its first one, or leave accumulate_grad_batches out"
                    )
                self._current_fx_name = "training_step"
            results = self.trainer._results
            results.batch, results.batch_size = batch, None
            output = self._step(batch)
            self._ended = [output, batch]
        loss = output.get("loss") if isinstance(output, dict) else output
        if loss is not None and not isinstance(loss, Tensor):
            name = type(self.model).__name__
            raise UserError(
                f"step {step.index}: {name}.training_step returned {type(output).__name__}; return the loss, a mapping"
                " with 'loss', or None to leave the batch out"
            )
        return Outcome(loss)

    def _step(self, batch: Any) -> Any:
        arguments = (batch, self.last_batch_idx)[: self._training_arguments]
        return self.model.training_step(*arguments)

    def _quietly(self, batch: Any) -> Any:
        """Call ``training_step`` without logging anything."""
        own = vars(self.model)
        own["log"] = _ignore
        try:
            return self._step(batch)
        finally:
            del own["log"]

    def keep_state(self) -> Callable[[], None]:
        """Remember buffers and attributes of the module, and return a function that puts them back."""
        buffers, attributes = super().keep_state(), keep_attributes(self.model)

        def put_back() -> None:
            attributes()
            buffers()

        return put_back

    def _end_batch(self) -> None:
        """Announce the end of the batch before, with what ``training_step`` returned."""
        if self._ended and overridden(self.model, "on_train_batch_end"):
            self._current_fx_name = "on_train_batch_end"
            output, batch = self._ended
            outputs = {} if output is None else dict(output) if isinstance(output, dict) else {"loss": output}
            outputs.update({"loss": outputs["loss"].detach()} if outputs else {})
            self.model.on_train_batch_end(outputs, batch, self.last_batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Window, batch_idx: int) -> None:
        """Announce the end of the window's last batch."""
        self._end_batch()
        self._ended = []
        self.update.step_plateaus()

    def on_train_epoch_end(self) -> None:
        """Publish the epoch's means and what the module logged, and step schedulers that count epochs."""
        self._tell("on_train_epoch_end")
        logged = self._logged()
        self.recorder.end_epoch()
        self.recorder.remember(logged)
        self.update.end_epoch(self.recorder.validated)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def _logged(self) -> dict[str, float]:
        """Return what was logged through Lightning since the epoch or evaluation began, by tag."""
        self.trainer._logger_connector.epoch_end_reached()
        results = self.trainer._results
        metrics = {**results.metrics(True)["callback"], **results.metrics(False)["callback"]}
        return {tag: float(value) for tag, value in metrics.items() if value.numel() == 1}

    def _evaluated(self, stage: str) -> dict[str, float]:
        """Return the metrics of an evaluation, which the module logs."""
        hook = {"val": "on_validation_epoch_end"}.get(stage, f"on_{stage}_epoch_end")
        self._tell(hook)
        metrics = self._logged()
        self.recorder.publish(stage, metrics)
        return metrics

    def on_validation_start(self) -> None:
        """Switch to the evaluation weights."""
        self.enter_evaluation()
        self._tell("on_validation_start")

    def on_test_start(self) -> None:
        """Switch to the evaluation weights."""
        self.enter_evaluation()
        self._tell("on_test_start")

    def on_predict_start(self) -> None:
        """Switch to the evaluation weights."""
        self.enter_evaluation()
        self._tell("on_predict_start")

    def on_predict_end(self) -> None:
        """Restore the raw weights."""
        self._tell("on_predict_end")
        self.leave_evaluation()

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's state, the module's own entries, and the positions of generators and loaders."""
        super().on_save_checkpoint(checkpoint)
        add_entries(checkpoint, self.model, self._datamodule)
        loader = self._loaders.get("train")
        position = {
            "loader": loader.position() if isinstance(loader, WindowLoader) else None,
            "metrics": {name: state_of_metric(metric) for name, metric in self._metrics()},
        }
        positions: list[Any] = [position]
        if self.trainer.world_size > 1 and torch.distributed.is_initialized():
            positions = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(positions, position)
        checkpoint["framework"]["positions"] = positions

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the run's state and the module's own entries."""
        super().on_load_checkpoint(checkpoint)
        find_entries(checkpoint, self.model, self._datamodule)
        positions = checkpoint["framework"]["positions"]
        if self.trainer.state.fn == "fit" and len(positions) == self.trainer.world_size:
            kept = positions[self.trainer.global_rank]
            self._kept, self._kept_metrics = kept["loader"], kept["metrics"]
            loops = checkpoint["loops"]["fit_loop"]
            epochs = loops["epoch_progress"]["current"]
            within = epochs["processed"] < epochs["ready"]
            self._place = epochs["processed"], loops["epoch_loop.batch_progress"]["current"]["processed"] if within else 0

    def _metrics(self) -> list[tuple[str, Metric]]:
        """Return the module's torchmetrics by name, without those within another."""
        found = [(name, one) for name, one in self.model.named_modules() if isinstance(one, Metric)]
        inner = {part for _, one in found for part in one.modules() if part is not one}
        return [(name, one) for name, one in found if one not in inner]


def _changing_mode(hook: str) -> Callable[[Foreign], None]:
    """Return a hook that passes on to the module and sets the core's own mode, which nobody else would."""

    def change(self: Foreign) -> None:
        self.training = hook.endswith("_train")
        getattr(self.model, hook)()

    return change


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Log nothing: a second evaluation of a batch must not count."""
