"""Lightning's hooks that a core passes on to its module."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytorch_lightning as pl

from framework.data.modules import overridden

_PASSED_ON = (
    "on_fit_start",
    "on_fit_end",
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
    "on_validation_model_zero_grad",
    "backward",
    "configure_callbacks",
)
_MODES = ("on_validation_model_eval", "on_validation_model_train", "on_test_model_eval", "on_test_model_train")
_STEPS = ("validation_step", "test_step", "predict_step")


def pass_on(core: pl.LightningModule, module: Any) -> None:
    """Give a core the hooks that its module overrides, as attributes; hooks of nobody cost nothing.

    Lightning asks a module's attributes which hooks it has, and which arguments its steps take. The hooks that the core
    has itself pass on by their own code.

    Args:
        core: the core.
        module: the user's module.
    """
    own = vars(core)
    for hook in _PASSED_ON:
        if overridden(module, hook):
            own[hook] = getattr(module, hook)
    for hook in _MODES:
        if overridden(module, hook):
            own[hook] = MethodType(_changing_mode(module, hook), core)
    for step in _STEPS:
        passed = overridden(module, step) or step == "predict_step"
        own[step] = getattr(module, step) if passed else MethodType(getattr(pl.LightningModule, step), core)
    if not overridden(module, "validation_step"):  # Lightning would warn of loaders without it
        own["val_dataloader"] = MethodType(pl.LightningModule.val_dataloader, core)


def tell(module: Any, hook: str, *args: Any) -> Any:
    """Call a hook of the module if it overrides it, and return what it returned."""
    return getattr(module, hook)(*args) if overridden(module, hook) else None


def _changing_mode(module: Any, hook: str) -> Callable[[Any], None]:
    """Return a hook that passes on, and sets the core's own mode, which nobody else would."""

    def change(core: Any) -> None:
        if hook.endswith("_eval"):
            core.layer_modes.remember()
        core.training = hook.endswith("_train")
        getattr(module, hook)()

    return change
