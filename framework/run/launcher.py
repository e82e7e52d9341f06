"""What a run's spawned or forked ranks hand back to the process that started them."""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher

from framework.engine.core import Core
from framework.engine.history import Entry


class HandsBack(_MultiProcessingLauncher):
    """Lightning's launcher of ``ddp_spawn`` and ``ddp_fork``, which hands back the history of metrics and the counters.

    Lightning itself hands back weights and the last metrics only.
    """

    def get_extra_results(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Return what rank zero hands back, as plain data."""
        core = cast(Core, trainer.lightning_module)
        progress: Any = trainer.fit_loop.epoch_progress.current
        run = {
            "history": [tuple(entry) for entry in core.recorder.history],
            "step": core.at.index,
            "skipped": core.at.skipped,
            "epochs": progress.processed,
            "stopped": trainer.should_stop,
        }
        return {**super().get_extra_results(trainer), "run": run}

    def update_main_process_results(self, trainer: pl.Trainer, extra: dict[str, Any]) -> None:
        """Take over what rank zero handed back."""
        run = extra.pop("run")
        super().update_main_process_results(trainer, extra)
        core = cast(Core, trainer.lightning_module)
        core.trainer = trainer  # Lightning connects the two in the other process only
        core.recorder.history = [Entry(*entry) for entry in run["history"]]
        core.at.index, core.at.skipped = run["step"], run["skipped"]
        progress: Any = trainer.fit_loop.epoch_progress.current
        progress.processed = run["epochs"]
        trainer.should_stop = run["stopped"]
