"""``Core``, the LightningModule of a run: Lightning's hooks, the loaders, and the objects that make a step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from framework.data.batch import input_of
from framework.data.data import Data
from framework.data.loaders import TrainLoader, Window
from framework.data.ready import WindowLoader
from framework.engine.calls import prediction_of
from framework.engine.forward import Forward
from framework.engine.gradient import Gradient
from framework.engine.history import warn_of_first
from framework.engine.loading import Loading
from framework.engine.logged import add_logged
from framework.engine.place import Place
from framework.engine.recorder import Recorder
from framework.engine.sensitivity import Sensitivity, validation_gradient
from framework.engine.skips import OnNonFinite, Skips
from framework.engine.state import restore_run, state_of_run
from framework.engine.update import Update
from framework.errors import UserError
from framework.plugin.plugin import Plugin

# hooks that Lightning calls under automatic optimization only, and what to use instead
_NOT_ASKED = {
    "optimizer_step": "write a plugin with make_optimizer",
    "optimizer_zero_grad": "write a plugin with transform_gradients",
    "configure_gradient_clipping": "write a plugin with clip_gradients",
    "lr_scheduler_step": "write a plugin with make_scheduler",
}


class Core(Loading):
    r"""Trains a network on :math:`\tilde J = J + \sum_i \alpha_i \Omega_i`: the loss J and the terms of the plugins.

    For another kind of objective (a language model, an autoencoder, several losses) subclass it, override
    :meth:`compute_loss`, and name the class in the recipe: ``Recipe(..., core=LanguageModel)``. If J is a mean over
    something other than samples (frames, tokens), override :meth:`count` too, which weights micro-batches and ranks.

    One batch of Lightning is one *window*: the micro-batches of one optimizer step. The core uses Lightning's manual
    optimization because plugins need the whole window: to weight the micro-batches of a short last window, to add terms
    once per update, and to evaluate the gradient a second time.

    Args:
        model: the network; its ``forward`` takes a batch's input.
        loss: ``loss(prediction, target)``, a mean over samples; None if a subclass computes its own.
        metrics: torchmetrics by name, computed on the training, validation and test part.
        plugins: the plugins in recipe order, in which they are called.
        data: the data, from which the loaders are made.
        seed: the run's seed, which keys every draw.
        accumulate: micro-batches per optimizer step.
        clip: gradient clipping by the Trainer's options: ``(gradient_clip_val, gradient_clip_algorithm)``.
        compile: compile the network with ``torch.compile``; a mapping gives its options.
        on_nonfinite: what to do if the objective is infinite or not a number: ``"stop"``, or ``"skip"`` the step.
        monitor: tag of the metric that determines the best epoch.
        mode: ``"min"`` or ``"max"``: whether lower or higher values of that metric are better.

    Raises:
        UserError: if a relation between plugins is violated.
    """

    _forward_kind: type[Forward] = Forward
    _update_kind: type[Update] = Update
    _prefix = "model."  # of the network's names in checkpoints
    __module__ = "framework"  # users import it from there, and ``run.json`` stores this name

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        plugins: Sequence[Plugin] = (),
        *,
        data: Data | None = None,
        seed: int = 0,
        accumulate: int = 1,
        clip: tuple[float | None, str | None] = (None, None),
        compile: bool | Mapping[str, Any] = False,
        on_nonfinite: OnNonFinite = "stop",
        monitor: str = "val/loss",
        mode: str = "min",
    ) -> None:
        if on_nonfinite not in ("stop", "skip"):
            raise UserError(f"on_nonfinite={on_nonfinite!r}: must be 'stop' or 'skip'")
        super().__init__(model, loss, plugins, data, seed, compile)
        self.automatic_optimization = False
        self.accumulate, self.monitor, self.mode = accumulate, monitor, mode
        self.place, self._loaders = Place(self), {}
        self.recorder = Recorder(self, metrics or {}, monitor, mode)
        self.again = self._forward_kind(self)
        self.skips = Skips(self, self.recorder) if on_nonfinite == "skip" else None
        self.gradient = Gradient(self, self.again, self.recorder, self.skips)
        self.update = self._update_kind(self, self.gradient, self.again, self.skips, clip)
        # read from a checkpoint, applied once training starts
        self._within: list[Any] = []
        self._logged_before: dict[str, Any] = {}
        self._before: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, instead in _NOT_ASKED.items():
            if name in vars(cls):
                raise TypeError(f"{cls.__name__}.{name} is never called under manual optimization: {instead}")
        if "window" not in inspect.signature(cls.training_step).parameters:
            raise TypeError(
                f"{cls.__name__}.training_step must take (self, window, batch_idx) and make a whole optimizer"
                " step; for another objective override compute_loss(self, batch) instead"
            )

    def configure_optimizers(self) -> Any:
        """Return the plugins' optimizer and scheduler; the default is AdamW without weight decay or schedule."""
        groups = [{**group, "params": [p for _, p in group["params"]]} for group in self.parameter_groups()]
        optimizer = self.answers.sole("make_optimizer", groups)
        if optimizer is None:
            optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        steps = self.trainer.estimated_stepping_batches
        total = int(steps) if math.isfinite(steps) and steps > 0 else -1
        self.at.total = total if total > 0 else math.inf
        config: dict[str, Any] = {"optimizer": optimizer}
        scheduler = self.answers.sole("make_scheduler", optimizer, total)
        if scheduler is not None:
            # Lightning ignores a monitor under manual optimization and warns of it
            self.update.monitor = scheduler.get("monitor") or "val/loss"
            config["lr_scheduler"] = {key: value for key, value in scheduler.items() if key != "monitor"}
        return config

    def sensitivity(self, window: Window, vector: Sequence[Tensor], names: Sequence[str]) -> dict[str, float]:
        """Return how the step's gradient, multiplied by a vector, changes with the logarithms of plugins' strengths."""
        return Sensitivity(self, self.again, self.gradient, names)(window, vector)

    def validation_gradient(self, weights: Sequence[Tensor], samples: int, look: int) -> list[Tensor]:
        """Return the gradient of J over validation samples, in evaluation mode, in turn by the number of the look."""
        return validation_gradient(self, weights, samples, look)

    # ---- training ----------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Initialize the step's counters, prepare the objects that make a step, and position the loader."""
        step, trainer = self.at, self.trainer
        step.index, step.rank, step.world = trainer.global_step, trainer.global_rank, trainer.world_size
        step.epoch = trainer.current_epoch  # on_train_epoch_start is not called if a run resumes within an epoch
        step.optimizer = self.update.prepare()
        self.again.prepare()
        self.gradient.prepare()
        self.recorder.prepare()
        if len(self._within) == step.world:  # with another number of ranks the means so far of the epoch are lost
            self.recorder.restore(self._within[step.rank])
            self._logged_before = self._within[step.rank].get("logged", {})
        self._within = []
        loader = self._loaders.get("train")
        if isinstance(loader, (TrainLoader, WindowLoader)):
            # a checkpoint from the end of an epoch still counts that epoch's batches; one from within a step counts
            # that step as ready but not as processed
            progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
            done = progress.processed if trainer.fit_loop.restarting else 0
            loader.epoch, loader.start = 0 if self._overfits else trainer.current_epoch, done
            if isinstance(loader, TrainLoader) and 0 < done < len(loader) and self._before != loader.samples_per_step:
                raise UserError(
                    f"the checkpoint is from within an epoch of {self._before} samples a step, but this run takes"
                    f" {loader.samples_per_step}; to resume, keep batch_size x accumulate_grad_batches x ranks the same"
                )

    def on_train_epoch_start(self) -> None:
        """Start the means of a new epoch."""
        self.at.epoch, self._logged_before = self.trainer.current_epoch, {}
        self.recorder.begin_epoch()

    def training_step(self, window: Window, batch_idx: int) -> None:
        """Make one optimizer step from one window of micro-batches."""
        step = self.at
        self.recorder.begin_step(step)
        self.answers.notify("begin_step", step)
        self.update(window)
        if self.observers.silent is not None:
            self.observers.end_first_step(compiled=bool(self._compile))
        step.index += 1
        if self._logged_before:
            add_logged(self.trainer.fit_loop.epoch_loop._results, self._logged_before)
            self._logged_before = {}
        if step.logged:
            self.recorder.write_step(step, self.update.weight_terms(), self.update.learning_rates())

    def on_train_epoch_end(self) -> None:
        """Publish the epoch's means to callbacks and loggers, and step schedulers that count epochs."""
        self.recorder.end_epoch()
        self.update.end_epoch(self.recorder.validated)

    def on_train_end(self) -> None:
        """Hand the network back with the optimizer's weights for evaluation."""
        self.update.modes.eval()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's own state to a checkpoint. A collective: every rank must call it."""
        checkpoint["framework"] = state_of_run(self, self.recorder, self._samples_per_step)
        self.place.keep(checkpoint, self._loaders.get("train"), self._own_metrics())
        # "state_dict" is that of the network alone, which plain torch can load
        state = checkpoint.get("state_dict", {})
        beside = {name: state.pop(name) for name in list(state) if not name.startswith(self._prefix)}
        checkpoint["framework"]["beside"] = beside
        if self.update.modes.trains:  # who reads the file without the optimizer wants the weights for evaluation
            named = dict(self.model.named_parameters())
            found = {self._prefix + name: value for name, value in self.update.modes.for_evaluation(named).items()}
            checkpoint["framework"]["trained"] = {name: state[name] for name in found}
            state.update(found)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the run's own state from a checkpoint."""
        self._within, self._before = restore_run(self, self.recorder, checkpoint)
        self.place.find(checkpoint)
        kept = checkpoint["framework"]
        trained = kept.get("trained") if self.trainer.state.fn == "fit" else None
        for more in (kept.get("beside"), trained):
            if more:
                checkpoint["state_dict"].update(more)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add one validation batch to the mean of J, without penalties, and to the metrics."""
        self.recorder.evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add one test batch to the mean of J, without penalties, and to the metrics."""
        self.recorder.evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the network's prediction for one batch: of an output with several entries the one called so."""
        return prediction_of(self(input_of(batch)))

    def on_validation_start(self) -> None:
        """Switch to the evaluation weights, after freeing the gradients, which the next step drops anyway."""
        if self.trainer.state.fn == "fit":
            self.model.zero_grad()
            self.update.modes.eval()
        self.enter_evaluation()

    def on_test_start(self) -> None:
        """Switch to the evaluation weights for test."""
        self.enter_evaluation()

    def on_predict_start(self) -> None:
        """Switch to the evaluation weights for predict."""
        self.enter_evaluation()

    def on_validation_epoch_end(self) -> None:
        """Reduce J and metrics over ranks, restore the raw weights, and stop training if a plugin requests it.

        Not in ``on_validation_end``, where checkpoints are written: they must hold the raw weights and the state of the
        plugins after these metrics.
        """
        metrics = self._evaluated("val")
        self.leave_evaluation()
        warn_of_first(self.recorder.history, self.recorder.monitor)
        stoppers = self.answers.of("should_stop")
        if stoppers and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            known = {name: float(value) for name, value in self.trainer.callback_metrics.items()} | metrics
            if self.answers.any("should_stop", known):
                self.trainer.should_stop = True

    def _evaluated(self, stage: str) -> dict[str, float]:
        """Reduce J and metrics of an evaluation over ranks, publish them, and return them by tag."""
        return self.recorder.end_evaluation(stage)

    def on_test_epoch_end(self) -> None:
        """Reduce J and metrics over ranks, and restore the raw weights."""
        self._evaluated("test")
        self.leave_evaluation()

    def on_predict_end(self) -> None:
        """Restore the raw weights."""
        self.leave_evaluation()
