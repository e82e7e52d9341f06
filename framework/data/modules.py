"""What of Lightning's classes a user's module or data module has written."""

from __future__ import annotations

from typing import Any


def is_datamodule(part: Any) -> bool:
    """Return whether a part is a ``LightningDataModule``, of ``pytorch_lightning`` or ``lightning.pytorch``."""
    return any(base.__name__ == "LightningDataModule" for base in type(part).__mro__)


def overridden(module: Any, name: str) -> bool:
    """Return whether a LightningModule or LightningDataModule has a method of its own of this name.

    Args:
        module: the module.
        name: name of one of Lightning's hooks.
    """
    if name in vars(module):
        return True
    for base in type(module).__mro__:
        if name in vars(base):
            home = getattr(vars(base)[name], "__module__", base.__module__).partition(".")[0]
            return home not in ("pytorch_lightning", "lightning", "lightning_fabric", "torch")
    return False
