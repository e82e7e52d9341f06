"""The core: a LightningModule that asks the plugins at each hook point and combines their answers."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from framework.checkpoint.file import FORMAT, check_format
from framework.data.batch import Outcome, clean_target, input_of, loss_of, size_of, target_of
from framework.data.data import Data
from framework.data.loaders import EvalLoader, TrainLoader, Window
from framework.engine.forward import Again
from framework.engine.gradient import Gradient
from framework.engine.recorder import Entry, Recorder
from framework.engine.sharding import data_mesh
from framework.engine.skips import OnNonFinite, Skips
from framework.engine.state import go_on_within_epoch, out_of_time
from framework.engine.update import Update
from framework.errors import UserError
from framework.ops.patterns import Patterns
from framework.ops.shards import is_sharded
from framework.plugin.answers import Answers
from framework.plugin.edits import WeightEdits
from framework.plugin.observe import Observers
from framework.plugin.plugin import Plugin
from framework.plugin.relations import check_relations
from framework.plugin.step import Step

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# what Lightning asks of modules that it steps itself, and what to use in its place
_NOT_ASKED = {
    "optimizer_step": "write a plugin with make_optimizer",
    "optimizer_zero_grad": "write a plugin with transform_gradients",
    "configure_gradient_clipping": "write a plugin with clip_gradients",
    "lr_scheduler_step": "write a plugin with make_scheduler",
}


class Core(pl.LightningModule):
    r"""Trains a network on :math:`\tilde J = J + \sum_i \alpha_i \Omega_i`, the plugins giving all but J.

    For another kind of objective (a language model, an autoencoder, several losses) subclass it, override
    :meth:`compute_loss`, and name the class in the recipe: ``Recipe(..., core=LanguageModel)``. Where J is a mean over
    something else than samples (frames, tokens), override :meth:`count` too, so that micro-batches and ranks count by
    their share.

    One batch of Lightning's is one *window*: the micro-batches of one optimizer step. The core optimizes by hand
    (Lightning's manual optimization), since plugins need the window whole: shares of a short last window, terms added
    once an update, second evaluations.

    Args:
        model: the network; its ``forward`` takes a batch's input.
        loss: ``loss(prediction, target)``, a mean over samples; None where a subclass has its own.
        metrics: torchmetrics by name, worked out on training, validation and test part.
        plugins: plugins in the order in which they answer.
        data: the data, for Lightning to ask for loaders.
        seed: the run's seed, which keys every draw.
        accumulate: micro-batches an optimizer step.
        clip: gradient clipping by the Trainer's options: ``(gradient_clip_val, gradient_clip_algorithm)``.
        compile: compile the network with ``torch.compile``; a mapping gives its options.
        on_nonfinite: what to do where the objective is infinite or not a number: ``"stop"`` or ``"skip"`` the step.

    Raises:
        UserError: where relations between plugins are broken.
    """

    __module__ = "framework"  # as users import it and ``run.json`` names it, whichever file it stands in

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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        check_relations(plugins)
        self.plugins = list(plugins)
        self.answers = Answers(plugins)
        self.data = data
        self.seed = seed
        self.accumulate = accumulate
        self.loss = loss
        self.model = self.answers.fold("prepare_model", model)
        self.edits = WeightEdits()
        # not `step`: subclasses and Lightning use short names for methods
        self.at = Step(seed, self.edits)
        self.at.plugins = {plugin.name: plugin for plugin in self.plugins}
        self.recorder = Recorder(self, metrics or {})
        self.gradient = Gradient(self)
        self.again = Again(self)
        self.update = Update(self, clip)
        if on_nonfinite not in ("stop", "skip"):
            raise UserError(f"on_nonfinite={on_nonfinite!r}: must be 'stop' or 'skip'")
        self.skips = Skips(self) if on_nonfinite == "skip" else None
        self.observers = Observers(self.model, self.at)
        self._compile = compile
        self._attached = False
        self._begin = self.answers.calls("begin_step")
        self._evaluating: AbstractContextManager[None] | None = None
        # of a checkpoint that the run goes on from
        self._within: list[Any] = []
        self._before: int | None = None
        self._loaders: dict[str, TrainLoader | EvalLoader] = {}
        # kept out of nn.Module's registry: the compiled network shares the model's parameters
        object.__setattr__(self, "_network", self.model)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, instead in _NOT_ASKED.items():
            if name in vars(cls):
                raise TypeError(f"{cls.__name__}.{name} would never be asked, since the core steps by hand: {instead}")
        if "window" not in inspect.signature(cls.training_step).parameters:
            raise TypeError(
                f"{cls.__name__}.training_step: the core's own makes the whole step, for (self, window, batch_idx);"
                " override compute_loss(self, batch) for another objective"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets this name some 44 times a step; nn.Module's own __setattr__ made it 15 to 20 % of a small step
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # ---- what a user may override ------------------------------------------------------------------------------------

    def forward(self, x: Any) -> Any:
        """Return the network's output for a batch's input."""
        network: Callable[..., Any] = self.__dict__["_network"]
        return network(x)

    def compute_loss(self, batch: Any) -> Outcome:
        """Return J of one batch, in training, validation and test alike; the method to override.

        Args:
            batch: as collated, after the plugins' ``transform_batch``; under mixing its target is a
                :class:`framework.MixedTarget`, which :meth:`data_loss` understands.
        """
        prediction = self(input_of(batch))
        target = target_of(batch)
        return Outcome(self.data_loss(prediction, target), prediction, clean_target(target))

    def data_loss(self, prediction: Any, target: Any) -> Tensor:
        """Return the recipe's loss, over the weighted pairs of a mixed target as well."""
        if self.loss is None:
            raise UserError(
                f"{type(self).__name__} has no loss: give Recipe(loss=...), or override compute_loss in a subclass"
            )
        return loss_of(self.loss, prediction, target)

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Share the parameters out among the processes of a mesh, in place; asked under ``strategy="fsdp2"``.

        By default the network is one unit: its parameters are gathered at once for forward and again for backward,
        while gradients, the optimizer's state and what plugins keep stay shared out. To gather less at a time override
        it: ``fully_shard`` each block first, then the network.

        Args:
            model: the network.
            mesh: the processes.
        """
        from torch.distributed.fsdp import fully_shard

        # gathered parameters that stayed after an evaluation would hide later changes of the weights
        fully_shard(model, mesh=mesh, reshard_after_forward=True)

    def count(self, batch: Any) -> int | Tensor:
        """Return how many equal parts J is a mean over in this batch; by default its samples."""
        return size_of(batch)

    # ---- plugins -----------------------------------------------------------------------------------------------------

    def observe(self, plugin: Plugin, patterns: Patterns) -> dict[str, nn.Module]:
        """Let a plugin's ``transform_activation`` see the layers that match; to be called in its ``attach``.

        Args:
            plugin: who sees them.
            patterns: over qualified names or class names of layers.

        Raises:
            UserError: where a pattern matches nothing.
        """
        return self.observers.watch(plugin, patterns)

    def attach_plugins(self) -> None:
        """Tell the plugins that the network is ready, then compile it; once, and anew where it was sharded since."""
        if self._attached:
            return
        self._attached = True
        for attach in self.answers.calls("attach"):
            attach(self)
        if self._compile:
            options = self._compile if isinstance(self._compile, Mapping) else {}
            object.__setattr__(self, "_network", torch.compile(self.model, **options))

    def setup(self, stage: str) -> None:
        """Attach the plugins, before weights and states are restored."""
        self.attach_plugins()

    def configure_model(self) -> None:
        """Share the parameters out among processes where the strategy is to, and attach the plugins to the shards."""
        mesh = data_mesh(self)
        if mesh is None or any(is_sharded(parameter) for parameter in self.model.parameters()):
            return
        self.shard(self.model, mesh)
        self._attached = False  # the parameters that plugins found before are no longer the network's
        self.attach_plugins()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups as the plugins make them, ``"params"`` being pairs with names."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        if not named:
            raise UserError(f"{type(self.model).__name__} has no parameter that requires a gradient: nothing to train")
        inside = set(self.model.parameters())
        beside = [name for name, p in self.named_parameters() if p.requires_grad and p not in inside]
        if beside:
            raise UserError(
                f"{type(self).__name__}: {', '.join(beside)} would never be trained, not being part of the network;"
                " make it part of Recipe(model=...), or freeze it by requires_grad_(False)"
            )
        groups: list[dict[str, Any]] = self.answers.fold("group_parameters", [{"params": named}])
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> Any:
        """Ask the plugins for groups, optimizer and scheduler; the default is AdamW without decay."""
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
            # Lightning drops the monitor under manual optimization, with a warning
            self.update.monitor = scheduler.get("monitor") or "val/loss"
            config["lr_scheduler"] = {key: value for key, value in scheduler.items() if key != "monitor"}
        return config

    # ---- data --------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of windows."""
        trainer = self.trainer
        self.close_loaders("train")
        self._loaders["train"] = loader = self._data.train_loader(
            seed=self.seed,
            accumulate=self.accumulate,
            transforms=[(plugin.name, plugin.transform_sample) for plugin in self.answers.of("transform_sample")],
            rank=trainer.global_rank,
            world=trainer.world_size,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )
        if self._overfits:
            del loader.sampler  # where it finds none, Lightning never moves on from the order of the first epoch
        return loader

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """Return the loader of the validation part, nothing where there is none."""
        return [] if self._data.val is None else self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        """Return the loader of the test part."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader:
        """Return the loader of the test part."""
        return self._eval_loader("test")

    def training_batches(self, limit: int) -> Iterator[Any]:
        """Yield up to ``limit`` training batches on the core's device, the same on every rank, apart from training."""
        data = dataclasses.replace(self._data, workers=0)
        transforms = [(plugin.name, plugin.transform_sample) for plugin in self.answers.of("transform_sample")]
        windows = data.train_loader(seed=self.seed, transforms=transforms)
        windows.set_epoch(self.at.epoch)
        for window in itertools.islice(windows, limit):
            batch = self.trainer.precision_plugin.convert_input(window.batches[0])
            yield self.transfer_batch_to_device(batch, self.device, 0)

    def _eval_loader(self, part: str) -> EvalLoader:
        self.close_loaders(part)
        loader = self._data.eval_loader(part, rank=self.trainer.global_rank, world=self.trainer.world_size)
        self._loaders[part] = loader
        return loader

    def close_loaders(self, *parts: str) -> None:
        """End the worker processes of the loaders of these parts, of all where none is named."""
        for part in parts or tuple(self._loaders):
            if part in self._loaders:
                self._loaders[part].close()

    def exit_code_of_workers(self) -> int | None:
        """Return the exit code of a loaders' worker that failed, None for none."""
        return next((code for loader in self._loaders.values() if (code := loader.exit_code)), None)

    def teardown(self, stage: str) -> None:
        """End the loaders' worker processes."""
        self.close_loaders()

    @property
    def _samples_per_step(self) -> int | None:
        loader = self._loaders.get("train")
        return loader.samples_per_step if isinstance(loader, TrainLoader) else None

    @property
    def _overfits(self) -> bool:
        return bool(self.trainer.overfit_batches)  # type: ignore[attr-defined] # set outside of __init__

    @property
    def _data(self) -> Data:
        if self.data is None:
            raise UserError(f"{type(self).__name__} has no data: give Recipe(data=Data(...))")
        return self.data

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch or a window; on the CPU there is nothing to move, and looking for tensors costs time."""
        if device.type == "cpu":
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    # ---- training ----------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Find out where the run stands and how this machine steps."""
        step, trainer = self.at, self.trainer
        step.index, step.rank, step.world = trainer.global_step, trainer.global_rank, trainer.world_size
        step.epoch = trainer.current_epoch  # no epoch starts where a run goes on from within one
        step.optimizer = self.update.prepare()
        self.gradient.prepare()
        self.recorder.prepare()
        if len(self._within) == step.world:  # another number of ranks goes on without the epoch's means so far
            self.recorder.restore(self._within[step.rank])
        self._within = []
        loader = self._loaders.get("train")
        if isinstance(loader, TrainLoader):
            # a checkpoint from the end of an epoch still counts that epoch's batches; one from within a step counts the
            # step ready
            progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
            done = progress.processed if trainer.fit_loop.restarting else 0
            loader.epoch, loader.start = 0 if self._overfits else trainer.current_epoch, done
            if 0 < done < len(loader) and self._before != loader.samples_per_step:
                raise UserError(
                    f"the checkpoint is from within an epoch of {self._before} samples a step, and this run takes"
                    f" {loader.samples_per_step}: batch_size x accumulate_grad_batches x ranks must stay the same there"
                )

    def on_train_epoch_start(self) -> None:
        """Begin an epoch."""
        self.at.epoch = self.trainer.current_epoch
        self.recorder.begin_epoch()

    def training_step(self, window: Window, batch_idx: int) -> None:
        """Make one optimizer step of one window of micro-batches."""
        step = self.at
        self.recorder.begin_step(step)
        for begin in self._begin:
            begin(step)
        self.update(window)
        step.index += 1
        if step.logged:
            self.recorder.write_step(step)

    def on_train_epoch_end(self) -> None:
        """Give the epoch's means to callbacks and loggers, and move schedulers that count epochs."""
        self.recorder.end_epoch()
        self.update.end_epoch(self.recorder.validated)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the metrics so far and what each rank has gathered within the epoch; every rank has to ask."""
        within: list[Any] = [self.recorder.state()]
        if self.trainer.world_size > 1 and torch.distributed.is_initialized():
            within = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(within, self.recorder.state())
        checkpoint["framework"] = {
            "format": FORMAT,
            "history": [tuple(entry) for entry in self.recorder.history],
            "within_epoch": within,
            "stopped": self._stoppers() if self.trainer.should_stop and not out_of_time(self.trainer) else None,
            "samples_per_step": self._samples_per_step,
            "skipped": self.update.skipped,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the metrics up to the checkpoint, and that a plugin had ended the run, if one had."""
        check_format(checkpoint, "the checkpoint")
        kept = checkpoint["framework"]
        self.recorder.history = [Entry(*entry) for entry in kept["history"]]
        if self.trainer.state.fn == "fit":
            self._within, self._before = kept["within_epoch"], kept["samples_per_step"]
            self.update.skipped = kept["skipped"]
            self.at.index, self.at.epoch = checkpoint["global_step"], checkpoint["epoch"]
            self.trainer.should_stop = kept["stopped"] == self._stoppers()  # more patience is another story
            go_on_within_epoch(self.trainer, checkpoint["loops"]["fit_loop"], self.at.index)

    def _stoppers(self) -> dict[str, Any]:
        return {plugin.name: plugin.declared_ for plugin in self.answers.of("should_stop")}

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add one batch to the mean of J and to the metrics: J alone, never the penalties."""
        self.recorder.evaluate("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add one batch to the mean of J and to the metrics."""
        self.recorder.evaluate("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the network's output."""
        return self(input_of(batch))

    def on_validation_start(self) -> None:
        """Put the weights to evaluate in, in the place of gradients that the next step would forget anyway."""
        if self.trainer.state.fn == "fit":
            self.model.zero_grad()
        self.enter_evaluation()

    def on_test_start(self) -> None:
        """Put the weights to evaluate in."""
        self.enter_evaluation()

    def on_predict_start(self) -> None:
        """Put the weights to evaluate in."""
        self.enter_evaluation()

    def on_validation_epoch_end(self) -> None:
        """Reduce J and metrics over ranks, put the raw weights back, and ask the plugins whether to stop.

        All of it here, not in ``on_validation_end``, where checkpoints are written: they are to hold the raw weights
        and what the plugins made of these metrics.
        """
        metrics = self.recorder.end_evaluation("val")
        self.leave_evaluation()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            known = {name: float(value) for name, value in self.trainer.callback_metrics.items()} | metrics
            stop = [answer(known) for answer in self.answers.calls("should_stop")]  # all are asked: they keep counts
            if any(stop):
                self.trainer.should_stop = True

    def on_test_epoch_end(self) -> None:
        """Reduce J and metrics over ranks."""
        self.recorder.end_evaluation("test")
        self.leave_evaluation()

    def on_predict_end(self) -> None:
        """Put the raw weights back."""
        self.leave_evaluation()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Hold the weights to evaluate in the network: the average, where a plugin keeps one."""
        self.enter_evaluation()
        try:
            yield
        finally:
            self.leave_evaluation()

    @property
    def evaluates_others(self) -> bool:
        """Whether the network holds other weights than the raw ones at the moment."""
        return self._evaluating is not None

    def enter_evaluation(self) -> None:
        """Put the weights to evaluate in: the raw ones, where no plugin has others."""
        context = self.answers.sole("evaluation_weights", self)
        if context is not None and self._evaluating is None:
            context.__enter__()
            self._evaluating = context

    def leave_evaluation(self) -> None:
        """Put the raw weights back; without effect where they are in."""
        context, self._evaluating = self._evaluating, None
        if context is not None:
            context.__exit__(None, None, None)
