"""``Recipe``: everything that defines one training run."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from framework.data.data import Data
from framework.data.modules import is_datamodule
from framework.data.parts import is_ready
from framework.engine.core import Core
from framework.engine.skips import OnNonFinite
from framework.errors import UserError, did_you_mean
from framework.foreign.core import Foreign
from framework.plugin.facts import snake_case
from framework.plugin.plugin import Plugin
from framework.settings import as_python

# Trainer options that the core implements itself, since it uses manual optimization
_OWN_OPTIONS = ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")

# names by which a run logs values of its own, as train/loss and val/loss
_OWN_TAGS = ("loss", "objective", "skipped_steps")


@dataclasses.dataclass
class Recipe:
    """Everything that defines a training run; a recipe file's ``recipe(...)`` returns a new one at every call.

    Args:
        model: the network.
        data: training, validation and test part: :class:`framework.Data`, or what its training part may be.
        loss: ``loss(prediction, target)``, a mean over samples; None if ``core`` has its own.
        metrics: torchmetrics by name.
        plugins: plugins and plain Lightning callbacks, in the order in which they are called.
        trainer: options of Lightning's ``Trainer``, such as ``{"max_epochs": 30}``; the command line's
            ``--trainer.*`` overrides them.
        core: the class of the core, a subclass for another kind of objective.
        monitor: the metric by which the best checkpoint is chosen; by default ``"val/loss"``, and for a ``module`` the
            one that its plateau schedule monitors, or ``"val_loss"`` if it logs that.
        mode: ``"min"`` or ``"max"``: which way the monitored metric is better.
        compile: compile the network with ``torch.compile``; a mapping gives its options.
        parameters: arguments of the recipe function, defaults included; filled in by the framework.
        module: a ``LightningModule``, in place of model, loss, metrics and core: trained as it is, by its own
            ``training_step``, optimizer and hooks, with plugins around it. ``data`` may then be a
            ``LightningDataModule``, or left out if the module has loaders.

    Raises:
        UserError: if an argument is of the wrong type.
    """

    model: Any = None
    data: Any = None
    loss: Callable[[Any, Any], Tensor] | None = None
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)
    plugins: list[Callback] = dataclasses.field(default_factory=list)
    trainer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    core: type[Core] = Core
    monitor: Any = None
    mode: str = "min"
    compile: bool | Mapping[str, Any] = False
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    module: Any = None

    def __post_init__(self) -> None:
        if self.module is not None:
            self._check_module()
        if self.monitor is None:
            self.monitor = "val/loss" if self.module is None else ""
        if not isinstance(self.model, nn.Module):
            raise UserError(f"Recipe(model=...): must be a torch.nn.Module; received {type(self.model).__name__}")
        if is_datamodule(self.data) or is_ready(self.data) or (self.data is None and self.module is not None):
            self.data = Data(self.data)
        if not isinstance(self.data, Data):
            raise UserError(f"Recipe(data=...): must be a framework.Data; received {type(self.data).__name__}")
        if self.module is None and self.data.train is None and self.data.datamodule is None:
            raise UserError("Data(train=...): a network needs a training part; only a LightningModule may have its own")
        if not (isinstance(self.core, type) and issubclass(self.core, Core)):
            raise UserError(f"Recipe(core={self.core!r}): must be framework.Core or a subclass of it")
        if self.mode not in ("min", "max"):
            raise UserError(f"Recipe(mode={self.mode!r}): must be 'min' or 'max'")
        if isinstance(self.loss, type):
            name = self.loss.__name__
            raise UserError(f"Recipe(loss=...): received the class {name}; write {name}(), an instance of it")
        if self.loss is not None and not callable(self.loss):
            raise UserError(f"Recipe(loss={self.loss!r}): must be callable, loss(prediction, target)")
        if not isinstance(self.plugins, (list, tuple)):
            raise UserError(f"Recipe(plugins=...): must be a list; received {self.plugins!r}")
        for plugin in self.plugins:
            if not isinstance(plugin, Callback):
                raise UserError(
                    f"Recipe(plugins=...): {plugin!r} is neither a framework.Plugin nor a Lightning callback"
                )
        for name, metric in self.metrics.items():
            if not isinstance(metric, Metric):
                raise UserError(f"Recipe(metrics=...): {name!r} must be a torchmetrics.Metric; received {metric!r}")
            if not isinstance(name, str) or not name:
                raise UserError(f"Recipe(metrics=...): {name!r}: a metric's name must be a text, such as 'accuracy'")
            if name in _OWN_TAGS:
                raise UserError(
                    f"Recipe(metrics=...): {name!r}: train/{name} and val/{name} are the run's own values; give the"
                    f" metric another name, such as '{snake_case(type(metric).__name__)}'"
                )
        check_trainer_options(self.trainer)

    def _check_module(self) -> None:
        given: dict[str, Any] = {"model": self.model, "loss": self.loss, "metrics": self.metrics or None}
        if self.core is not Core:
            given["core"] = self.core
        for name, value in given.items():
            if value is not None and value is not self.module:
                raise UserError(f"Recipe(module=..., {name}=...): a LightningModule has its own; leave {name} out")
        self.model = self.module

    def make_core(self, seed: int, options: Mapping[str, Any], on_nonfinite: OnNonFinite = "stop") -> Core:
        """Return a core of this recipe.

        Args:
            seed: the run's seed.
            options: the Trainer's options, of which the core implements some itself.
            on_nonfinite: what to do if the objective is infinite or not a number, see :class:`Core`.
        """
        accumulate = as_python(options.get("accumulate_grad_batches", 1))
        if not isinstance(accumulate, int) or isinstance(accumulate, bool) or accumulate < 1:
            raise UserError(f"trainer.accumulate_grad_batches={accumulate!r}: must be a whole number >= 1")
        clip = (options.get("gradient_clip_val"), options.get("gradient_clip_algorithm"))
        plugins = [plugin for plugin in self.plugins if isinstance(plugin, Plugin)]
        if self.module is not None:
            return Foreign(
                self.module,
                plugins,
                data=self.data,
                seed=seed,
                accumulate=accumulate,
                clip=clip,
                compile=self.compile,
                on_nonfinite=on_nonfinite,
                monitor=self.monitor,
                mode=self.mode,
            )
        return self.core(
            self.model,
            self.loss,
            self.metrics,
            plugins,
            data=self.data,
            seed=seed,
            accumulate=accumulate,
            clip=clip,
            compile=self.compile,
            on_nonfinite=on_nonfinite,
            monitor=self.monitor,
            mode=self.mode,
        )


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Check that Lightning's ``Trainer`` has options of these names.

    Raises:
        UserError: if it has not; the message suggests a similar name.
    """
    known = inspect.signature(Trainer.__init__).parameters.keys() - {"self"}
    for name in options:
        if name not in known:
            raise UserError(f"trainer.{name}: Lightning's Trainer has no such option{did_you_mean(name, known)}")


def lightning_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for Lightning's ``Trainer``, without those that the core implements itself."""
    return {name: value for name, value in options.items() if name not in _OWN_OPTIONS}
