"""``Objective``: the network, its loss J, and the plugins that add terms to it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from framework.data.batch import size_of
from framework.data.data import Data
from framework.data.outcome import Outcome
from framework.engine.layer_modes import LayerModes
from framework.engine.lazy import materialize
from framework.engine.loss import Loss
from framework.engine.sharding import data_mesh
from framework.engine.whole import loss_over_training
from framework.errors import UserError
from framework.ops.buffers import keep_buffers
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


class Objective(pl.LightningModule):
    r"""The network, its loss J and the plugins: what is needed to evaluate :math:`\tilde J`, without the training loop.

    The objects that make a step receive it typed as this class and not as :class:`framework.Core`, its subclass with
    Lightning's hooks: they use only what is defined here.

    Args:
        model: the network; its ``forward`` takes a batch's input.
        loss: ``loss(prediction, target)``, a mean over samples; None if a subclass computes its own.
        plugins: plugins in recipe order.
        data: the recipe's data.
        seed: the run's seed, which keys every draw.
        compile: compile the network with ``torch.compile``; a mapping gives its options.

    Attributes:
        model: the network, as ``prepare_model`` of the plugins returned it.
        answers: the plugins by hook point.
        edits: saves weights before they are edited, and restores them.
        at: the current step.
        observers: the forward hooks by which plugins read and change the outputs of layers.

    Raises:
        UserError: if a relation between plugins is violated.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor] | None,
        plugins: Sequence[Plugin],
        data: Data | None,
        seed: int,
        compile: bool | Mapping[str, Any],
    ) -> None:
        super().__init__()
        check_relations(plugins)
        self.plugins = list(plugins)
        self.answers = Answers(plugins)
        self.data = data
        self.seed = seed
        self.loss = loss
        object.__setattr__(self, "_network", model)
        self._losses = Loss(loss, model, type(self).__name__, data)
        materialize(self, data, model)
        self.model = self.answers.prepare(model, seed)
        self.edits = WeightEdits()
        # not `step`: subclasses and Lightning use short names for methods
        self.at = Step(seed, self.edits)
        self.at.plugins = {plugin.name: plugin for plugin in self.plugins}
        self.observers = Observers(self.model, self.at)
        self._compile = compile
        self._attached = False
        self.layer_modes = LayerModes(self)
        self._evaluating: AbstractContextManager[None] | None = None
        # kept out of nn.Module's registry: the compiled network shares the model's parameters
        object.__setattr__(self, "_network", self.model)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets this name some 44 times a step, which took 15 to 20 % of a small step in nn.Module.__setattr__
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # ---- what a user may override ------------------------------------------------------------------------------------

    def forward(self, x: Any) -> Any:
        """Return the network's output for a batch's input."""
        network: Callable[..., Any] = self.__dict__["_network"]
        if isinstance(x, Tensor):
            return network(x)
        args, named = self.arguments(x)
        return network(*args, **named)

    def arguments(self, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and the named arguments of the network for a batch's input."""
        return self._losses.call.arguments(x)

    def compute_loss(self, batch: Any) -> Outcome:
        """Compute J of one batch in training, validation and test; override it for another kind of objective.

        Returns the outcome, or J alone as a scalar tensor.

        Args:
            batch: the collated batch, in training after the plugins' ``transform_batch``; a plugin may have made its
                target a :class:`framework.MixedTarget`, which :meth:`data_loss` accepts.
        """
        return self._losses.of(batch, self.__dict__["_network"], self)

    def data_loss(self, prediction: Any, target: Any, weight: Tensor | None = None) -> Tensor:
        """Compute the recipe's loss; for a mixed target, the weighted mean of the losses of its pairs.

        The samples' weights are ``(samples,)``, see :func:`framework.data.means.weighted_mean`.
        """
        return self._losses.data(prediction, target, weight)

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Shard the parameters across the ranks of a mesh, in place; called under ``strategy="fsdp2"``.

        By default the network is one unit: all parameters are gathered at once for forward and again for backward,
        while gradients, the optimizer's state and the plugins' tensors stay sharded. Override this method to gather
        less at a time: ``fully_shard`` each block first, then the network.

        Args:
            model: the network.
            mesh: the ranks to shard across.
        """
        from torch.distributed.fsdp import fully_shard

        # parameters that stay gathered after an evaluation would hide later changes of the weights
        fully_shard(model, mesh=mesh, reshard_after_forward=True)

    def count(self, batch: Any) -> int | Tensor:
        """Return the number of elements that J averages over in this batch, by default its samples.

        For a cross-entropy with class weights or ignored targets, the sum of what counts; of sample weights, their sum.
        """
        if type(self).compute_loss is Objective.compute_loss:
            return self._losses.count(batch)
        return size_of(batch)

    def samples(self, batch: Any) -> int:
        """Return the number of samples in a batch."""
        return size_of(batch)

    def keep_state(self) -> Callable[[], None]:
        """Remember what a forward pass may change besides weights, and return a function that puts it back."""
        return keep_buffers(self.model)

    # ---- plugins -----------------------------------------------------------------------------------------------------

    def observe(self, plugin: Plugin, patterns: Patterns) -> dict[str, nn.Module]:
        """Register a plugin's ``transform_activation`` at the layers that match; called by the plugin's ``attach``.

        Args:
            plugin: the plugin.
            patterns: patterns of qualified names or class names of layers.

        Returns:
            The layers by name.

        Raises:
            UserError: if a pattern matches no layer.
        """
        return self.observers.watch(plugin, patterns)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # hooks of layers do not follow a copy, such as that of a spawned process: there plugins attach again
        self.observers, self._attached = Observers(self.model, self.at), False

    def attach_plugins(self) -> None:
        """Attach the plugins and compile the network; once, and once more if the network was sharded in between."""
        if self._attached:
            return
        self._attached = True
        self.answers.notify("attach", self)
        if self._compile:
            options = self._compile if isinstance(self._compile, Mapping) else {}
            object.__setattr__(self, "_network", torch.compile(self.model, **options))

    def setup(self, stage: str) -> None:
        """Attach the plugins, before weights and states are restored from a checkpoint."""
        self.attach_plugins()

    def configure_model(self) -> None:
        """Shard the parameters across ranks if the strategy does so, and attach the plugins to the shards."""
        mesh = data_mesh(self.trainer, self.plugins)
        if mesh is None or any(is_sharded(parameter) for parameter in self.model.parameters()):
            return
        self.shard(self.model, mesh)
        self._attached = False  # plugins may hold the parameters from before sharding
        self.attach_plugins()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups after ``group_parameters``; ``"params"`` are ``(name, parameter)`` pairs.

        Raises:
            UserError: if no parameter is trainable, or a trainable parameter is not part of the network.
        """
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        if not named:
            raise UserError(f"{type(self.model).__name__} has no parameter to train; call requires_grad_() on some")
        inside = set(self.model.parameters())
        beside = [name for name, p in self.named_parameters() if p.requires_grad and p not in inside]
        if beside:
            raise UserError(
                f"{type(self).__name__}: {', '.join(beside)} would never be trained, since it is not in the network;"
                " make it part of Recipe(model=...), or freeze it by requires_grad_(False)"
            )
        groups: list[dict[str, Any]] = self.answers.fold("group_parameters", [{"params": named}])
        return [group for group in groups if group["params"]]

    # ---- batches -----------------------------------------------------------------------------------------------------

    @property
    def _data(self) -> Data:
        if self.data is None:
            raise UserError(f"{type(self).__name__} has no data: give Recipe(data=Data(...))")
        return self.data

    @property
    def _sample_transforms(self) -> list[tuple[str, Callable[..., Any]]]:
        return [(plugin.name, plugin.transform_sample) for plugin in self.answers.of("transform_sample")]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch or a window to a device; on the CPU it is returned as it is, to save the search for tensors."""
        if device.type == "cpu":
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def training_batches(self, limit: int) -> Iterator[Any]:
        """Yield up to ``limit`` training batches on the device, the same on every rank; training is unaffected."""
        data = self._data if self._data.is_ready("train") else dataclasses.replace(self._data, workers=0)
        windows = data.train_loader(seed=self.seed, transforms=self._sample_transforms)
        windows.set_epoch(self.at.epoch)
        with windows.aside() as batches:
            for batch in itertools.islice(batches, limit):
                moved = self.trainer.precision_plugin.convert_input(batch)
                yield self.transfer_batch_to_device(moved, self.device, 0)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def training_loss(self) -> float:
        """Compute J over the training part at the evaluation weights, after training ended."""
        return loss_over_training(self, self._data)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all layers, after remembering which of them train."""
        if self.training and not mode:
            self.layer_modes.remember()
        return super().train(mode)

    def as_in_training(self) -> AbstractContextManager[None]:
        """Return a context in which every layer has the mode that it trains in; frozen layers stay in evaluation."""
        return self.layer_modes.as_in_training()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Return a context in which the network holds the evaluation weights: an average, if a plugin keeps one."""
        self.enter_evaluation()
        try:
            yield
        finally:
            self.leave_evaluation()

    @property
    def evaluates_others(self) -> bool:
        """Whether the network currently holds evaluation weights other than the raw weights."""
        return self._evaluating is not None

    def enter_evaluation(self) -> None:
        """Switch the network to the evaluation weights of a plugin; keep the raw weights if no plugin has others."""
        context = self.answers.sole("evaluation_weights", self)
        if context is not None and self._evaluating is None:
            context.__enter__()
            self._evaluating = context

    def leave_evaluation(self) -> None:
        """Restore the raw weights; does nothing if the network holds them already."""
        context, self._evaluating = self._evaluating, None
        if context is not None:
            context.__exit__(None, None, None)
