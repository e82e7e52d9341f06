"""What a LightningModule adds to a checkpoint, and Lightning's own layout of one."""

from __future__ import annotations

import io
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from framework.data.modules import overridden

_HYPER = ("hyper_parameters", "hparams_name", "hparams_type")


def add_entries(checkpoint: dict[str, Any], module: Any, datamodule: Any) -> None:
    """Let module and data module add their entries to a checkpoint; those that are not plain data are left out.

    A checkpoint holds only tensors and plain data, so that reading one cannot execute code. The names of what is left
    out are kept, and :func:`find_entries` takes those from the module itself.

    Args:
        checkpoint: Lightning's checkpoint, changed in place.
        module: the user's module.
        datamodule: the user's data module, or None.
    """
    before = dict(checkpoint)
    _let_add(checkpoint, module, datamodule)
    changed = [key for key, value in checkpoint.items() if key not in before or before[key] is not value]
    omitted = [key for key in {*changed, *_HYPER} if key in checkpoint and not _is_data(checkpoint[key])]
    for key in omitted:
        del checkpoint[key]
        if key in before and key not in _HYPER:
            checkpoint[key] = before[key]
    checkpoint["framework"]["omitted"] = sorted(omitted)


def find_entries(checkpoint: dict[str, Any], module: Any, datamodule: Any) -> None:
    """Let module and data module read their entries from a checkpoint.

    Args:
        checkpoint: the content of the checkpoint.
        module: the user's module, whose own values stand in for entries that were left out.
        datamodule: the user's data module, or None.
    """
    omitted = checkpoint["framework"].get("omitted", [])
    if omitted:
        fresh = dict(checkpoint)
        _let_add(fresh, module, None)
        checkpoint.update({key: fresh[key] for key in omitted if key in fresh})
    if datamodule is not None and type(datamodule).__qualname__ in checkpoint:
        datamodule.load_state_dict(checkpoint[type(datamodule).__qualname__])
    if overridden(module, "on_load_checkpoint"):
        module.on_load_checkpoint(checkpoint)


def _let_add(checkpoint: dict[str, Any], module: Any, datamodule: Any) -> None:
    for one in (module, datamodule):
        if one is None or not one.hparams:
            continue
        if hasattr(one, "_hparams_name"):
            checkpoint["hparams_name"] = one._hparams_name
        checkpoint["hyper_parameters"] = one.hparams if _is_container(one.hparams) else dict(one.hparams)
        if _is_container(one.hparams):
            checkpoint["hparams_type"] = type(one.hparams)
    if datamodule is not None and (state := datamodule.state_dict()):
        checkpoint[type(datamodule).__qualname__] = state
    if overridden(module, "on_save_checkpoint"):
        module.on_save_checkpoint(checkpoint)


def _is_container(hparams: Any) -> bool:
    return type(hparams).__module__.startswith("omegaconf")


def _is_data(value: Any) -> bool:
    """Return whether torch reads a value back without executing code."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (UnpicklingError, TypeError, AttributeError, RuntimeError):
        return False
    return True


def write_for_lightning(module: Any, facts: dict[str, str], path: Path) -> None:
    """Write a file that the module's class reads by ``load_from_checkpoint``.

    It holds the hyperparameters as the module saved them. Where these are objects, the file is read by
    ``load_from_checkpoint(path, weights_only=False)``, which executes code of the file: read only files you trust.

    Args:
        module: the user's module, at the weights to write.
        facts: metadata; ``"epoch"`` and ``"step"`` among them.
        path: the file.
    """
    state = {
        name: value.detach().cpu() if torch.is_tensor(value) else value for name, value in module.state_dict().items()
    }
    checkpoint: dict[str, Any] = {
        "epoch": int(facts["epoch"]),
        "global_step": int(facts["step"]),
        "pytorch-lightning_version": version("pytorch-lightning"),
        "state_dict": state,
    }
    _let_add(checkpoint, module, None)
    torch.save(checkpoint, path)
