"""Checks that a run is the same in micro-batches, on ranks, and resumed; and that strength zero equals absence."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy, ParallelStrategy
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher, _WorkerOutput

from framework.engine.core import Core
from framework.engine.sharding import FullySharded
from framework.errors import UserError
from framework.ops.shards import whole
from framework.testing.case import Case
from framework.testing.compare import Weights, demand_close, demand_same_bits, same_bits
from framework.testing.result import Failed, Inapplicable

# Runs that only differ in the order of sums are compared in float64, where one rounding is 1e-16. Six steps with
# momentum on these tasks amplify it to about 1e-14. A single float32 rounding anywhere would show as 1e-8.
SUMS = 1e-10

# without a time limit a plugin that desynchronizes the ranks would hang
_GLOO: dict[str, Any] = {"process_group_backend": "gloo", "timeout": datetime.timedelta(seconds=60)}


def zero_is_absence(case: Case) -> str:
    """Compare the plugin at strength zero with its absence, and the example with its absence."""
    ends = [_end(case.fit(make, trainer={"max_epochs": 3})) for make in (None, case.make)]
    if same_bits(*ends):
        raise Failed(
            "the example changes neither weights nor validation, so other checks would show nothing; make it stronger"
        )
    if case.absent is None:
        raise Inapplicable("it declares no settings at which it equals its absence")
    zero = case.fit(case.absent, trainer={"max_epochs": 3})
    what = f"{case.absent().describe()} differs from absence"
    demand_same_bits(ends[0]["weights"], zero.model.state_dict(), what)
    if not same_bits(ends[0], _end(zero)):
        raise Failed(f"{what}: in the validation metrics")
    return "the same bits"


def _end(core: Core) -> dict[str, Any]:
    # training metrics are means over the steps of this process, which differ in a resumed run
    history = [
        (entry.epoch, entry.step, {tag: value for tag, value in entry.metrics.items() if tag.startswith("val/")})
        for entry in core.recorder.history
    ]
    return {"weights": core.model.state_dict(), "history": history}


def micro_batches(case: Case) -> str:
    """Compare four micro-batches per step with one batch; the last step has 14 samples, its last micro-batch 2."""
    how: dict[str, Any] = {"noisy": False, "dtype": torch.float64}
    whole = case.fit(case.make, batch=16, **how)
    split = case.fit(case.make, batch=4, accumulate=4, **how)
    return demand_close(whole.model.state_dict(), split.model.state_dict(), SUMS, "4 micro-batches are not one batch")


def ranks(case: Case) -> str:
    """Compare two ranks of two micro-batches each with one process."""
    how: dict[str, Any] = {"noisy": False, "dtype": torch.float64}
    alone = case.fit(case.make, batch=16, **how)
    one, other = _ranks(case, DDPStrategy(start_method="fork", **_GLOO), batch=4, accumulate=2, **how)
    demand_same_bits(one, other, "the two ranks hold different weights", excusable=False)
    return demand_close(alone.model.state_dict(), one, SUMS, "2 ranks are not one process")


def sharded(case: Case, **how: Any) -> str:
    """Compare two ranks with sharded parameters with two that hold them whole.

    Args:
        case: the plugin.
        **how: further arguments of both cores, see :meth:`Case.core`.
    """
    how = {"noisy": False, "dtype": torch.float64, "batch": 4, "accumulate": 2, **how}
    held, _ = _ranks(case, DDPStrategy(start_method="fork", **_GLOO), **how)
    one, other = _ranks(case, ForkedShards(), **how)
    demand_same_bits(one, other, "the two ranks hold different weights", excusable=False)
    return demand_close(held, one, SUMS, "sharded ranks are not ranks that hold the network whole")


class ForkedShards(FullySharded):
    """Strategy that shards parameters across forked processes, as the checks need it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**_GLOO, **options})

    def _configure_launcher(self) -> None:
        self._launcher = _Forks(self, start_method="fork")


class _Forks(_MultiProcessingLauncher):
    """Launcher that returns no weights to the parent process, since each rank has only a shard."""

    def _collect_rank_zero_results(self, trainer: pl.Trainer, results: Any) -> _WorkerOutput | None:
        if self._strategy.local_rank != 0:
            return None
        return _WorkerOutput(None, None, trainer.state, results, self.get_extra_results(trainer))


def _ranks(case: Case, strategy: ParallelStrategy, **how: Any) -> list[Weights]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            case.fit(
                case.make,
                trainer={"devices": 2, "strategy": strategy, "callbacks": [_Keep(Path(folder))]},
                **how,
            )
        except UserError:
            raise
        except Exception as error:  # a rank's error, as text
            last = str(error).strip().splitlines()[-1]
            _, refused, message = last.partition("UserError: ")
            raise (UserError(message) if refused else Failed(f"a rank raised {last}")) from None
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


class _Keep(pl.Callback):
    """Saves the final weights of each rank."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, Core)
        torch.save(whole(dict(pl_module.model.state_dict())), self._folder / f"{trainer.global_rank}.pt")


def resume(case: Case) -> str:
    """Compare a run of three epochs with runs resumed from its checkpoints within and at the end of an epoch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options: dict[str, Any] = {"dirpath": folder, "save_top_k": -1, "auto_insert_metric_name": False}
        keep = [
            ModelCheckpoint(filename="within-{step}", every_n_train_steps=4, **options),
            ModelCheckpoint(filename="end-{epoch}", save_on_train_epoch_end=True, every_n_epochs=1, **options),
        ]
        whole = case.fit(case.make, trainer={"max_epochs": 3, "enable_checkpointing": True, "callbacks": keep})
        for point in ("within-4", "end-0"):
            path = folder / f"{point}.ckpt"
            if not path.exists():
                raise Failed(f"the run ended after {whole.at.index} steps, before there was a checkpoint {point}")
            again = case.fit(case.make, trainer={"max_epochs": 3, "ckpt_path": path})
            what = f"a run resumed from {'within an epoch' if point == 'within-4' else 'the end of an epoch'} differs"
            demand_same_bits(whole.model.state_dict(), again.model.state_dict(), what)
            if not same_bits(_end(whole), _end(again)):
                raise Failed(f"{what}: in the validation metrics")
            if not same_bits(_states(whole), _states(again)):
                raise Failed(f"{what}: in the plugin's state")
    return "the same bits"


def _states(core: Core) -> list[Any]:
    return [plugin.state_dict() for plugin in core.plugins]
