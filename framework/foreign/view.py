"""The Trainer as a foreign LightningModule sees it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class TrainerView:
    """Lightning's Trainer with the numbers that a module expects where a batch of Lightning's is a window here.

    Everything else, assignments included, is that of the Trainer.

    Args:
        trainer: the Trainer.
        module: the user's module.
        datamodule: the user's data module, None if there is none.
        accumulate: batches per optimizer step.
        clip: ``(gradient_clip_val, gradient_clip_algorithm)`` of the Trainer's options.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: Any,
        datamodule: Any,
        accumulate: int,
        clip: tuple[float | None, str | None],
    ) -> None:
        own = {
            "lightning_module": module,
            "datamodule": datamodule,
            "accumulate_grad_batches": accumulate,
            "gradient_clip_val": clip[0],
            "gradient_clip_algorithm": clip[1],
        }
        self.__dict__.update(_trainer=trainer, _own=own)

    # modules ask isinstance(self.trainer, Trainer)
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._trainer)

    @property
    def num_training_batches(self) -> int | float:
        """Batches of an epoch, not windows."""
        windows: int | float = self._trainer.num_training_batches
        size: int = self._own["accumulate_grad_batches"]
        known: int | None = self._trainer.lightning_module.batches_per_epoch
        return known if known is not None and windows == -(-known // size) else windows * size

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__["_own"]
        return own[name] if name in own else getattr(self.__dict__["_trainer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_trainer"], name, value)
